"""The content's pictures once more, in other looks, by filters that need no model.

A few pictures show a content in one or a few styles, and a half that learns from them takes what they share of style for a
part of the content: a crown that is always yellow on white will be so in any style. Pictures of the same content in looks that
the base model has words for ("in comic style") say what stays when style changes.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.common.words import article, noun_after
from b4m_pipeline.inputs.captions import LOOK
from b4m_pipeline.inputs.filters import STYLES
from b4m_pipeline.inputs.folders import Picture, load_picture
from b4m_pipeline.inputs.params import IngestionParams

_MASK_SIDE = 256
_TOLERANCE = 10  # of 255: what compression and resizing leave of an even ground
_DRAWN_SIDE = 128  # smaller pictures are redrawn at this size and shrunk, as the base model's own corpus is


class UnknownLookError(ValueError):
    """A look that there is no filter for."""


def check_looks(looks: dict[str, str]) -> None:
    """Raise UnknownLookError for a name that is not a filter's."""
    if unknown := [name for name in looks if name not in STYLES]:
        raise UnknownLookError(f"ingestion.content_looks: there are no filters {unknown}; there are {sorted(STYLES)}")


def redraw(picture: Image.Image, look: str, background: tuple[int, int, int], name: str = "") -> Image.Image:
    """An RGB picture in another look. What of `background` is connected to its border counts as ground, which a look may fill.
    name: what the filter's randomness is drawn from, if it has any."""
    drawn = picture.convert("RGB")
    if (side := min(picture.size)) < _DRAWN_SIDE:
        factor = _DRAWN_SIDE / side
        drawn = drawn.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS)
    rgb = np.asarray(drawn, dtype=np.float32) / 255
    alpha = 1 - np.asarray(ground_mask(drawn, background), dtype=np.float32)[..., None] / 255
    styled = STYLES[look](np.concatenate([rgb, alpha], axis=-1), numpy_generator("look", look, name))
    rgba = Image.fromarray((styled * 255 + 0.5).clip(0, 255).astype(np.uint8), "RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba).convert("RGB")
    return flat.resize(picture.size, Image.Resampling.BOX) if flat.size != picture.size else flat


def _saturation(picture: Image.Image) -> float:
    """Mean of all pixels', 0 (greys) to 255."""
    return float(np.asarray(picture.convert("HSV"))[..., 1].mean())


def ground_mask(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Mask (L) of the ground: pixels of the background's colour that a path of such pixels joins to the border."""
    small = picture if max(picture.size) <= _MASK_SIDE else picture.resize((_MASK_SIDE,) * 2, Image.Resampling.BILINEAR)
    even = np.abs(np.asarray(small, dtype=np.int16) - np.array(background, dtype=np.int16)).max(-1) <= _TOLERANCE
    ground = even.copy()
    ground[1:-1, 1:-1] = False
    while True:
        grown = ground.copy()
        grown[1:] |= ground[:-1]
        grown[:-1] |= ground[1:]
        grown[:, 1:] |= ground[:, :-1]
        grown[:, :-1] |= ground[:, 1:]
        grown &= even
        if (grown == ground).all():
            break
        ground = grown
    mask = Image.fromarray(ground.astype(np.uint8) * 255)
    return mask if mask.size == picture.size else mask.resize(picture.size, Image.Resampling.BILINEAR)


def look_row(row: pd.DataFrame, name: str, words: str | None, template: str) -> pd.DataFrame:
    """The row of a picture of the content as that of a look of it: with a key of its own, and a caption of these words."""
    token, noun = row["token"].item(), noun_after(row["token"].item(), row["noun"].item())
    caption = template.format(article=article(token), content=token, noun=noun, look=words)
    key = f"{row['picture'].item()}+{name.replace(' ', '-')}"
    return row.assign(picture=key, caption=" ".join(caption.split()), caption_source=LOOK)


def add_content_looks(
    manifest: pd.DataFrame, pictures: Mapping[str, Picture], params: IngestionParams
) -> tuple[pd.DataFrame, dict[str, Image.Image]]:
    """The captioned manifest with a row for each of `content_looks`, a picture of the content redrawn and captioned with the
    look's words, and these images by key. The pictures take turns, the more colourful first: all in all looks would leave too
    few steps to each."""
    looks = params.content_looks or {}
    check_looks(looks)
    rows: list[pd.DataFrame] = [manifest]
    further: dict[str, Image.Image] = {}
    content = manifest[manifest["role"] == "content"]
    if content.empty:  # a style is trained by itself
        return manifest, {}
    content = content.iloc[np.argsort([-_saturation(load_picture(pictures[key])) for key in content["picture"]], kind="stable")]
    for place, look in enumerate(looks):
        row = content.iloc[[place % len(content)]]
        rows.append(look_row(row, look, looks[look], params.look_template))
        new, given = rows[-1]["picture"].item(), pictures[row["picture"].item()]
        picture = given if isinstance(given, Image.Image) else given()
        further[new] = redraw(picture, look, params.background, new)
        if picture.mode == "RGBA":  # its mask
            further[new].putalpha(picture.getchannel("A"))
    return pd.concat(rows, ignore_index=True), further
