"""What a file's numbers mean as colours: profiles, CMYK, L*a*b*, greys of 16 bits and of floating point -> 8 bits in sRGB."""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of a profile -> the mode of the pictures that it is for."""
_SAME = 2  # of 255: a profile that moves no colour further is sRGB by another name


def to_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """A decoded picture of any mode -> RGB, or RGBA where it has transparency, converted from its colour profile to sRGB; and
    why that profile could not be heeded, "" where it was or where there is none: then the numbers are taken for sRGB.
    Raises ValueError for a mode that cannot be converted."""
    plain = rgb_or_rgba(image)
    if not (profile := image.info.get("icc_profile")):
        return plain, ""
    try:
        return _converted(image, plain, profile), ""
    except (ImportError, ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:  # ImportError: Pillow without LittleCMS
        return plain, f"its colour profile cannot be used and sRGB is assumed ({error})"


def rgb_or_rgba(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where there is transparency, without heed to profiles."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    if image.mode == "LAB":
        return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB").apply(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _converted(image: Image.Image, plain: Image.Image, profile: bytes) -> Image.Image:
    """`image` by its profile; `plain`, the same without, if the profile is sRGB or nearly so."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    grey = image.mode[0] in "1LIF" and image.mode != "LAB"
    if (space == "CMYK") != (image.mode == "CMYK") or (space == "GRAY" and not grey) or space not in _SPACES:
        raise ValueError(f"a profile for {space} on a picture in {image.mode}")
    mode = _SPACES[space]
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)
    if mode != "CMYK" and _moves(transform, mode) <= _SAME:
        return plain
    converted = transform.apply(image if mode == "CMYK" else plain.convert(mode))
    if plain.mode == "RGBA":
        converted.putalpha(plain.getchannel("A"))
    return converted


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _moves(transform: ImageCms.ImageCmsTransform, mode: str) -> int:
    """The furthest that a transform moves a channel, of 255, over a grid of colours in mode RGB or L."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3) if mode == "RGB" else steps[None]
    before = Image.fromarray(np.ascontiguousarray(grid))
    after = np.asarray(transform.apply(before), int)
    return int(np.abs(after - np.asarray(before.convert("RGB"), int)).max())


def _eight_bit(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, 32 bits or floating point -> mode L, scaled; Pillow's own conversion clips them to white."""
    values = np.asarray(image, dtype=np.float32)
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:  # no range is stated: the narrowest usual one that holds the values
        high = float(values.max(where=np.isfinite(values), initial=0))
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((limit for limit in usual if high <= limit), high)
    values = np.clip(np.nan_to_num(values / white, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
