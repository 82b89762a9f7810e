"""Vision-language models of transformers that put into words what a picture shows besides its concept.

Models with a chat template (Qwen-VL, SmolVLM and so on) are given an instruction. Florence-2 and BLIP follow none: they
describe the whole picture, and what names the concept is cut out as far as simple rules find it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from b4m_pipeline.common.hub import CONFIG, WEIGHTS, require_model
from b4m_pipeline.common.progress import batches
from b4m_pipeline.common.words import article
from b4m_pipeline.inputs.captions import CaptioningError, shows_style
from b4m_pipeline.inputs.folders import Picture, load_picture
from b4m_pipeline.inputs.params import CaptioningParams

PARAMETER = "captioning.vision_language_model"
_BATCH = 4  # pictures at once: each is some hundred tokens to a model of billions of weights
_NEW_TOKENS = 64  # more than captioning.max_words has room for
_FLORENCE_TASK = "<CAPTION>"
_SUPPORTED = (
    "Supported are blip, florence2, and what transformers' AutoModelForImageTextToText loads with a chat template: qwen2_vl, "
    "qwen2_5_vl, qwen3_vl, smolvlm, idefics3, internvl, gemma3, llava_onevision and others"
)
_OPENING = re.compile(
    r"(?:(?:sure|certainly|okay)\W+)?(?:here is [^:]{0,60}:\s*)?"
    r"(?:in (?:the|this) (?:image|picture|photo(?:graph)?)\W+(?:there (?:is|are)|we see|you can see)?\s*"
    r"|(?:the|this) (?:image|picture|photo(?:graph)?) (?:shows|depicts|features|displays|contains|presents|is of)\s+)?",
    re.IGNORECASE,
)
_MANNER = re.compile(
    r"(?P<manner>(?:an?|the) (?:[\w-]+ ){0,3}?(?:photo(?:graph)?|drawing|painting|illustration|sketch|cartoon|rendering|render"
    r"|picture|image|icon)) of (?P<thing>.+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Captioner:
    """A model in eval mode and its processor. kind: blip, florence2, or chat for a model that follows instructions."""

    model: Any
    processor: Any
    kind: str


def describe_rows(rows: pd.DataFrame, pictures: Mapping[str, Picture], params: CaptioningParams) -> dict[str, str]:
    """Picture -> text for a manifest's rows: how a content's picture is made and what surrounds the content, or which thing a
    style's picture shows. Rows about which the model says nothing of use are left out. Raises as `load_captioner` does."""
    captioner = load_captioner(str(params.vision_language_model))
    of_style = [shows_style(role) for role in rows["role"]]
    instructions = [
        (params.style_instruction if style else params.content_instruction).format(article=article(noun), noun=noun)
        for style, noun in zip(of_style, rows["noun"], strict=True)
    ]
    images = [load_picture(pictures[key]) for key in rows["picture"]]
    found = {}
    for key, noun, style, said in zip(
        rows["picture"], rows["noun"], of_style, describe(images, instructions, captioner), strict=True
    ):
        text = tidy(said)
        if style:
            text = without_manner(text)
        elif captioner.kind != "chat":
            text = without_thing(text, noun)
        if text:
            found[key] = text
    return found


def describe(images: Sequence[Image.Image], instructions: Sequence[str], captioner: Captioner) -> list[str]:
    """What the model answers about each RGB picture, asked by its instruction if it follows any."""
    import torch

    model, tokenizer = captioner.model, captioner.processor.tokenizer
    texts: list[str] = []
    with torch.inference_mode():
        for batch in batches(len(images), _BATCH, "describing pictures"):
            inputs = _inputs(captioner, list(images[batch]), list(instructions[batch])).to(model.device, model.dtype)
            ids = model.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
            if captioner.kind == "chat":
                ids = ids[:, inputs["input_ids"].shape[1] :]  # without the question
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def _inputs(captioner: Captioner, images: list[Image.Image], instructions: list[str]) -> Any:
    """What the model's `generate` takes for a batch."""
    processor = captioner.processor
    if captioner.kind == "blip":
        return processor(images=images, return_tensors="pt")
    if captioner.kind == "florence2":
        return processor(images=images, text=[_FLORENCE_TASK] * len(images), return_tensors="pt")
    asked = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
        for image, text in zip(images, instructions, strict=True)
    ]
    return processor.apply_chat_template(
        asked,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},  # answers begin where all questions end
    )


def tidy(text: str) -> str:
    """An answer as one line that can stand in a caption: without an opening such as "The image shows", quotation marks, and the
    capital and full stop of a sentence."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()).strip(" \"'*`")
    line = line[_OPENING.match(line).end() :].strip(" \"'*`.")  # type: ignore[union-attr]  # it matches the empty text, too
    return line[:1].lower() + line[1:] if not line[1:2].isupper() else line


def without_manner(text: str) -> str:
    """What a picture shows: "a watercolour painting of a boat" -> "a boat"."""
    split = _MANNER.fullmatch(text)
    return split["thing"] if split else text


def without_thing(text: str, noun: str) -> str:
    """How a picture is made and what surrounds the thing: "a painting of a red teapot on a table" -> "a painting, on a table".
    What stands before the class noun describes the thing. Whole if the noun is not in it."""
    split = _MANNER.fullmatch(text)
    manner, thing = (split["manner"], split["thing"]) if split else ("", text)
    named = re.search(rf"(?<!\w){re.escape(noun)}s?(?!\w)", thing, re.IGNORECASE)
    if named is None:
        return text
    return ", ".join(part for part in (manner, thing[named.end() :].strip(" ,.;")) if part)


def read_config(path: str) -> Any:
    """The configuration of a captioner (a folder, a Hub id, or id@revision), without its weights. Raises HubError if it cannot
    be had, CaptioningError if it is of a class that is not supported."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    name, options = _source(path)
    for files in (CONFIG, WEIGHTS):
        require_model(PARAMETER, name, files, **options)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CaptioningError(f"{PARAMETER}: {path!r} is no captioner ({_reason(error)}). {_SUPPORTED}.") from error
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise CaptioningError(f"{PARAMETER}: {path!r} is of the class {config.model_type}. {_SUPPORTED}.")
    return config


def load_captioner(path: str) -> Captioner:
    """A captioner on the GPU if there is one. Raises HubError and CaptioningError as `read_config` does, and if its
    files or a package that it needs are missing. Reads safetensors alone, and runs no code from the Hub."""
    from transformers import AutoModelForImageTextToText

    from b4m_pipeline.common.devices import DTYPES, pick_device, resolve_precision

    config, (name, options), device = read_config(path), _source(path), pick_device()
    kind = config.model_type if config.model_type in ("blip", "florence2") else "chat"
    with _loading(path, config.model_type):
        processor = _load_processor(config, name, options)
    if kind == "chat" and not processor.chat_template:
        raise CaptioningError(f"{PARAMETER}: {path!r} ({config.model_type}) has no chat template. {_SUPPORTED}.")
    dtype = DTYPES[resolve_precision("auto", device)]
    with _loading(path, config.model_type):
        model = AutoModelForImageTextToText.from_pretrained(name, config=config, dtype=dtype, use_safetensors=True, **options)
    return Captioner(model.eval().to(device), processor, kind)


@contextmanager
def _loading(path: str, model_type: str) -> Iterator[None]:
    """What transformers raises for missing or damaged files, and for missing packages, becomes a CaptioningError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    faults = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError, ImportError)
    try:
        yield
    except (*faults, StrictDataclassError, SafetensorError) as error:
        raise CaptioningError(
            f"{PARAMETER}: {path!r} ({model_type}) cannot be loaded ({_reason(error)}). It needs the files of the model, as "
            "safetensors, and those of its processor. Or set it to null."
        ) from error


def _load_processor(config: Any, name: str, options: dict[str, str]) -> Any:
    """The model's processor for images and text. The part for videos, which needs torchvision, is left out."""
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    whole: Any = PROCESSOR_MAPPING[type(config)]

    class WithoutVideos(whole):
        def check_argument_for_proper_class(self, part: str, given: Any) -> Any:
            return type(given) if part == "video_processor" else super().check_argument_for_proper_class(part, given)

    loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer, "video_processor": None}
    parts = [loaders[part] and loaders[part].from_pretrained(name, **options) for part in whole.get_attributes()]
    return WithoutVideos.from_args_and_dict(parts, whole.get_processor_dict(name, **options)[0])


def _source(path: str) -> tuple[str, dict[str, str]]:
    """Folder or Hub id, and the revision if it is id@revision."""
    name, _, revision = path.rpartition("@")
    return (name, {"revision": revision}) if name and not Path(path).exists() else (path, {})


def _reason(error: BaseException) -> str:
    """The first line of a message, which may list all that transformers knows."""
    line = (str(error).strip() or repr(error)).splitlines()[0]
    return line if len(line) <= 160 else f"{line[:160]}..."
