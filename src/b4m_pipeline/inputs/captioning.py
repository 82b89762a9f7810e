"""What a picture's prompt says: sidecar text > vision-language model > zero-shot tags > template, with the token."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from b4m_pipeline.common.config import CaptioningParams, ConceptParams, CounterpartParams, PreservationParams
from b4m_pipeline.inputs.folders import Picture, load_picture

logger = logging.getLogger(__name__)

BATCH = 16  # pictures at once through a captioning model
TAGS_NAME = "tags.json"
VARIANT, LOOK = "variant", "look"
"""In the column caption_source: a further caption of a picture (see `add_variants`), and a content's picture
in another look (see looks.py)."""
_PHRASE_WORDS = 4
_PREPOSITIONS = {"above", "at", "behind", "beside", "by", "from", "in", "near", "on", "over", "under", "with"}


class CaptioningError(ValueError):
    """A captioning model or its words are missing; the message names the parameter."""


def article(word: str) -> str:
    """a or an, by the first letter."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def caption_manifest(manifest: pd.DataFrame, pictures: dict[str, Picture], params: CaptioningParams) -> pd.DataFrame:
    """Give every picture a caption: the columns `caption` and `caption_source` take the place of `sidecar`.

    A model is loaded only if some picture needs it, and released before the next one is. Pictures of content and style
    together (role union) are captioned by sidecar or template. Raises CaptioningError if a model is not there.
    """
    texts = {row.picture: (row.sidecar, "sidecar") for row in manifest.itertuples() if row.sidecar}

    def missing() -> pd.DataFrame:
        return manifest[~manifest.picture.isin(texts) & (manifest.role != "union")]

    if params.vision_language_model and len(missing()):
        keys = missing().picture.tolist()
        described = describe([load_picture(pictures[key]) for key in keys], params.vision_language_model)
        texts |= {key: (text, "vision_language_model") for key, text in zip(keys, described, strict=True) if text}
    if params.clip and len(missing()):
        texts |= {key: (word, "tags") for key, word in _tag_rows(missing(), pictures, params).items()}

    style_token = next(iter(manifest.loc[manifest.role == "style", "token"]), "")  # of use to the role union alone
    captions, sources = [], []
    for row in manifest.itertuples():
        text, source = texts.get(row.picture, ("", "template"))
        captions.append(compose(row.role, row.token, row.noun, text, style_token, params, source))
        sources.append(source)
    counts = pd.Series(sources).value_counts()
    logger.info("Captions by %s", ", ".join(f"{source}: {count}" for source, count in counts.items()))
    return manifest.drop(columns="sidecar").assign(caption=captions, caption_source=sources)


def add_variants(manifest: pd.DataFrame, params: CaptioningParams, style_token: str) -> pd.DataFrame:
    """The manifest, and again a row for each picture of the content and each of `content_variants`, and for each picture of the
    style and each of `style_variants`, with that as its caption."""
    rows = [manifest]
    for role, templates in (("content", params.content_variants), ("style", params.style_variants)):
        for template in templates:
            copies = manifest[manifest["role"] == role].copy()
            copies["caption"] = [
                " ".join(_variant(template, role, token, noun, style_token).split())
                for token, noun in zip(copies["token"], copies["noun"], strict=True)
            ]
            rows.append(copies.assign(caption_source=VARIANT))
    return pd.concat(rows, ignore_index=True)


def _variant(template: str, role: str, token: str, noun: str, style_token: str) -> str:
    if role == "content":
        return template.format(article=article(token), content=token, noun=noun, style=style_token)
    return template.format(article=article(noun), noun=noun, style=token)


def preserved_prompts(
    params: PreservationParams, content: ConceptParams, style: ConceptParams, counterparts: CounterpartParams, seed: int
) -> dict[str, str]:
    """Prompts for each half to leave alone: known contents in known styles, every other one with a token of the run in place
    of a known content or style, never of both. Prompt -> which of the two is named by a token ("content", "style", "" if
    neither). Empty if no words are named."""
    if not params.contents:
        return {}
    from b4m_pipeline.common.seeding import numpy_generator

    draw = numpy_generator(seed, "preserved prompts")
    tokens = {"content": [content.token, *(c.token for c in counterparts.contents)]}
    tokens["style"] = [style.token, *(c.token for c in counterparts.styles)]
    prompts: dict[str, str] = {}
    for index in range(params.number):
        kind = ""
        words = {"content": str(draw.choice(params.contents)), "style": str(draw.choice(params.styles))}
        if index % 2:
            kind = ("content", "style")[index // 2 % 2]
            words[kind] = tokens[kind][index // 4 % len(tokens[kind])]
        prompts[params.template.format(article=article(words["content"]), noun=content.noun, **words)] = kind
    return prompts


def compose(
    role: str, token: str, noun: str, text: str, style_token: str, params: CaptioningParams, source: str = "sidecar"
) -> str:
    """One caption from a text that may be empty, a short phrase or a whole caption.

    - A text with the concept's token in it is the caption.
    - A phrase ("red apple", "oil painting") fills the place that the token leaves open: the thing shown on a style's
      picture, the style of a content's picture.
    - Any other text is put behind the template, so that a text encoder's limit never cuts the token.
    """
    text = _shorten(text, params.max_words, token)
    if text and all(contains(text, part) for part in ([token, style_token] if role == "union" else [token])):
        return text
    shows_style = role in ("style", "counterpart_style")
    if source == "tags":
        phrase = text
    elif role == "union" or (source == "vision_language_model" and not shows_style):
        phrase = None  # a sentence about what is seen, not the name of a style
    else:
        phrase = _phrase(text, noun)
    if shows_style:
        caption = _fill(params.style_template, phrase or "", noun, token, params)
    else:
        caption = _fill(params.content_template, token, noun, style_token if role == "union" else phrase, params)
    return caption if phrase or not text else f"{caption}, {text}"


def _fill(template: str, content: str, noun: str, style: str | None, params: CaptioningParams) -> str:
    text = template.format(article=article(content or noun), content=content, noun=noun)
    if style:
        text += params.style_suffix.format(style=style)
    return " ".join(text.split())


def contains(text: str, token: str) -> bool:
    """Whether a text holds a token as a word, or words, of its own, whatever its capitals."""
    return re.search(rf"(?<!\w){re.escape(token)}(?!\w)", text, re.IGNORECASE) is not None


def _shorten(text: str, limit: int, token: str) -> str:
    words = text.split()
    if len(words) > limit:
        logger.warning("A caption of %d words (token %s) is cut at %d: %s", len(words), token, limit, text[:80])
    return " ".join(words[:limit])


def _phrase(text: str, noun: str) -> str | None:
    """The words of a short name of a thing or a style, without article, noun and "in ... style"; None for a caption."""
    text = text.strip(" .\"'")
    if inner := re.fullmatch(r"in (?:the )?(.+) style", text, re.IGNORECASE):
        text = inner[1]
    words = text.split()
    if words and words[0].lower() in ("a", "an", "the"):
        words = words[1:]
    if len(words) > 1 and words[-1].lower() in (noun.lower(), "style"):
        words = words[:-1]
    if not 0 < len(words) <= _PHRASE_WORDS or words[0].lower() in _PREPOSITIONS or any(c in text for c in ",;:.!?"):
        return None
    return " ".join(words)


def describe(images: Sequence[Image.Image], model: str) -> list[str]:
    """One sentence for each RGB picture by a BLIP captioner (path or Hub id)."""
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor

    parameter = "captioning.vision_language_model"
    blip, processor = load_model(parameter, model, BlipForConditionalGeneration, BlipProcessor)
    texts: list[str] = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(images), BATCH), desc="Describing pictures", delay=2):
            inputs = processor(images=list(images[start : start + BATCH]), return_tensors="pt").to(blip.device)
            ids = blip.generate(**inputs, max_new_tokens=30, do_sample=False)
            texts += processor.batch_decode(ids, skip_special_tokens=True)
    return [" ".join(text.split()) for text in texts]


def _tag_rows(rows: pd.DataFrame, pictures: dict[str, Picture], params: CaptioningParams) -> dict[str, str]:
    """Picture -> word for the rows that get one: what a style's picture shows, which style a content is drawn in."""
    from transformers import CLIPModel, CLIPProcessor

    shows_style = rows.role.isin(["style", "counterpart_style"])
    words = {kind: _words(kind, params) for kind in ("content", "style") if (shows_style == (kind == "content")).any()}
    clip, processor = load_model("captioning.clip", params.clip, CLIPModel, CLIPProcessor)
    tags = {}
    for (is_style, noun), group in rows.groupby([shows_style, rows.noun]):
        kind = "content" if is_style else "style"
        if is_style:
            prompts = [_fill(params.style_template, word, noun, None, params) for word in words[kind]]
        else:
            prompts = [_fill(params.style_template, "", noun, word, params) for word in words[kind]]
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

    results = []
    with torch.inference_mode():
        parts = []
        for start in range(0, len(prompts), 8 * BATCH):
            chunk = list(prompts[start : start + 8 * BATCH])
            ids = processor.tokenizer(chunk, padding=True, truncation=True, return_tensors="pt").to(clip.device)
            parts.append(clip.get_text_features(**ids).pooler_output)
        text = normalize(torch.cat(parts), dim=-1)  # (P, D)
        for start in tqdm(range(0, len(images), BATCH), desc="Tagging pictures", delay=2):
            pixels = processor.image_processor(list(images[start : start + BATCH]), return_tensors="pt").to(clip.device)
            features = normalize(clip.get_image_features(**pixels).pooler_output, dim=-1)  # (B, D)
            probability, best = (clip.logit_scale.exp() * features @ text.T).softmax(dim=-1).max(dim=-1)
            results += zip(best.tolist(), probability.tolist(), strict=True)
    return results


def _words(kind: str, params: CaptioningParams) -> list[str]:
    """captioning.content_words or captioning.style_words, else those of the model's tags.json."""
    if given := getattr(params, f"{kind}_words"):
        return given
    path = Path(params.clip) / TAGS_NAME
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


def load_model(parameter: str, path: str, model_class: type, processor_class: type) -> tuple:
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
