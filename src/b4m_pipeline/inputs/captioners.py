"""A CLIP model that looks at a picture and chooses the word that fits it best."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from b4m_pipeline.common.progress import batches
from b4m_pipeline.inputs.captions import CaptioningError, fill_template, shows_style
from b4m_pipeline.inputs.folders import Picture, load_picture
from b4m_pipeline.inputs.params import CaptioningParams

logger = logging.getLogger(__name__)

BATCH = 16  # pictures at once through a captioning model
TAGS_NAME = "tags.json"


def tag_rows(rows: pd.DataFrame, pictures: Mapping[str, Picture], params: CaptioningParams) -> dict[str, str]:
    """Picture -> word for the rows that get one: what a style's picture shows, which style a content is drawn in."""
    from transformers import CLIPModel, CLIPProcessor

    of_style = rows.role.map(shows_style)
    words = {kind: _words(kind, params) for kind in ("content", "style") if (of_style == (kind == "content")).any()}
    clip, processor = load_model("captioning.clip", str(params.clip), CLIPModel, CLIPProcessor)
    tags = {}
    for (is_style, noun), group in rows.groupby([of_style, rows.noun]):
        kind = "content" if is_style else "style"
        if is_style:
            prompts = [fill_template(params.style_template, word, noun, None, params) for word in words[kind]]
        else:
            prompts = [fill_template(params.style_template, "", noun, word, params) for word in words[kind]]
        images = [load_picture(pictures[key]) for key in group.picture]
        for key, (index, confidence) in zip(group.picture, classify(images, prompts, clip, processor), strict=True):
            if confidence >= params.min_confidence:
                tags[key] = words[kind][index]
            logger.debug("%s: %s (%.2f)", key, words[kind][index], confidence)
    return tags


def classify(images: Sequence[Image.Image], prompts: Sequence[str], clip, processor) -> list[tuple[int, float]]:
    """The prompt that fits each picture best and its probability among them all, by a CLIPModel and its processor."""
    import torch
    from torch.nn.functional import normalize

    results: list[tuple[int, float]] = []
    with torch.inference_mode():
        parts = []
        for start in range(0, len(prompts), 8 * BATCH):
            chunk = list(prompts[start : start + 8 * BATCH])
            ids = processor.tokenizer(chunk, padding=True, truncation=True, return_tensors="pt").to(clip.device)
            parts.append(clip.get_text_features(**ids).pooler_output)
        text = normalize(torch.cat(parts), dim=-1)  # (P, D)
        for batch in batches(len(images), BATCH, "tagging pictures"):
            pixels = processor.image_processor(list(images[batch]), return_tensors="pt").to(clip.device)
            features = normalize(clip.get_image_features(**pixels).pooler_output, dim=-1)  # (B, D)
            probability, best = (clip.logit_scale.exp() * features @ text.T).softmax(dim=-1).max(dim=-1)
            results += zip(best.tolist(), probability.tolist(), strict=True)
    return results


def _words(kind: str, params: CaptioningParams) -> list[str]:
    """captioning.content_words or captioning.style_words, else those of the model's tags.json."""
    if given := getattr(params, f"{kind}_words"):
        return given
    path = Path(str(params.clip)) / TAGS_NAME
    try:
        words = json.loads(path.read_text(encoding="utf-8"))[f"{kind}s"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CaptioningError(
            f"captioning.{kind}_words is empty and {path} gives no list {kind + 's'!r} ({error!r}): name the words "
            "that pictures may be tagged with, or set captioning.clip to null."
        ) from error
    if not words or not all(isinstance(word, str) for word in words):
        raise CaptioningError(f"{path}: {kind + 's'!r} must be a list of words.")
    return words


def load_model(parameter: str, path: str, model_class: Any, processor_class: Any) -> tuple:
    """A model in eval mode and its processor, from a folder or the Hub. Raises CaptioningError, naming the parameter."""
    import torch
    from safetensors import SafetensorError

    try:
        model = model_class.from_pretrained(path, use_safetensors=True).eval()
        processor = processor_class.from_pretrained(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CaptioningError(
            f"{parameter}: {path!r} is no {model_class.__name__} that can be loaded "
            f"({(str(error) or repr(error)).splitlines()[0]}). Give a folder or a Hub id, or set it to null."
        ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor
