"""The content's pictures once more, redrawn by the base model in styles that it knows: looks for photographs, for which filters
are poor. Each is drawn once for the same picture, base model and settings, and kept."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.progress import progress
from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.seeding import derive_seed
from b4m_pipeline.common.words import article, file_words
from b4m_pipeline.diffusion.families import encoder_id, load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import ImageRequest, draw
from b4m_pipeline.inputs.drawings import save_drawing
from b4m_pipeline.inputs.folders import Picture, load_picture
from b4m_pipeline.inputs.looks import look_row
from b4m_pipeline.inputs.params import DrawnLooksParams, IngestionParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Look:
    """A picture to redraw. row: of the manifest, the look's already; size: width and height in pixels to redraw it at."""

    row: pd.DataFrame
    picture: Image.Image
    prompt: str
    seed: int
    size: tuple[int, int]
    file: Path


def add_drawn_looks(
    manifest: pd.DataFrame, pictures: Mapping[str, Picture], params: IngestionParams, base_model: BaseModelParams
) -> tuple[pd.DataFrame, dict[str, Image.Image]]:
    """The captioned manifest with a row for each of `drawn_looks.styles`, and these images by key. The content's pictures take
    turns. Raises BaseModelError or HubError if there is no such base model."""
    own, content = params.drawn_looks, manifest[manifest["role"] == "content"]
    if own is None or content.empty:  # a style is trained by itself
        return manifest, {}
    looks = [
        _look(content.iloc[[place % len(content)]], pictures, style, params.look_template, own, base_model)
        for place, style in enumerate(own.styles)
    ]
    if missing := [look for look in looks if not look.file.exists()]:
        _draw(missing, own, base_model)
        logger.info("Looks by the base model: %d in %s, %d of them drawn now", len(looks), own.folder, len(missing))
    further = {}
    for look in looks:
        further[look.row["picture"].item()] = drawn = _read(look)
        if look.picture.mode == "RGBA":  # its mask
            drawn.putalpha(look.picture.getchannel("A"))
    return pd.concat([manifest, *(look.row for look in looks)], ignore_index=True), further


def _look(
    row: pd.DataFrame,
    pictures: Mapping[str, Picture],
    style: str,
    template: str,
    params: DrawnLooksParams,
    base_model: BaseModelParams,
) -> _Look:
    key, noun = row["picture"].item(), row["noun"].item()
    given = pictures[key]
    picture = given if isinstance(given, Image.Image) else given()
    prompt = " ".join(params.template.format(article=article(noun), noun=noun, look=style).split())
    seed = derive_seed(params.seed, "drawn look", style) % 2**31
    size = _size(picture, params, math.lcm(8, load_family(base_model).side_multiple()))  # diffusers' pipelines want 8 at least
    decisive = params.model_dump(include={"strength", "steps", "guidance_scale"})
    digest = digest_of(row["sha256"].item(), picture.size, prompt, seed, size, encoder_id(base_model), decisive)
    file = Path(params.folder) / f"{file_words(style)}-{digest}.png"
    return _Look(look_row(row, f"drawn {style}", style, template), picture, prompt, seed, size, file)


def _size(picture: Image.Image, params: DrawnLooksParams, multiple: int) -> tuple[int, int]:
    """Of about `resolution` x `resolution` pixels, in the picture's shape."""
    width, height = picture.size
    scale = params.resolution / (width * height) ** 0.5 if params.resolution else 1.0
    return tuple(max(multiple, round(scale * side / multiple) * multiple) for side in (width, height))  # type: ignore[return-value]


def _draw(looks: list[_Look], params: DrawnLooksParams, base_model: BaseModelParams) -> None:
    family, device = load_family(base_model), pick_device()
    starts = [load_picture(look.picture).resize(look.size, Image.Resampling.LANCZOS) for look in looks]
    latents = [mean for mean, _ in family.encode_pictures(starts, device)]
    pipeline = family.load_pipeline(device)
    settings = params.model_dump(include={"steps", "guidance_scale", "strength"}) | {"batch_size": 1}
    for look, start in zip(progress(looks, "redrawing pictures", len(looks), params.steps), latents, strict=True):
        request = ImageRequest(look.prompt, look.seed)
        _, image = next(iter(draw(pipeline, [request], **settings, size=look.size[::-1], starts=[start])))
        save_drawing(image, look.prompt, look.file)


def _read(look: _Look) -> Image.Image:
    with Image.open(look.file) as image:
        return image.convert("RGB").resize(look.picture.size, Image.Resampling.LANCZOS)
