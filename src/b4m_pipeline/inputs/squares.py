"""One picture file -> one checked RGB square, or a rectangle of about its own shape where buckets are used."""

import contextlib
import hashlib
import math
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from b4m_pipeline.inputs.colours import rgb_or_rgba, to_srgb
from b4m_pipeline.inputs.params import BucketParams

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # decoders that any bytes may reach
_BY_ENDING = {".dib": "DIB", ".tga": "TGA"}  # formats whose bytes do not say what they are
HEIC_ENDINGS = (".heic", ".heif", ".hif")
EXTENSIONS = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".avif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", *HEIC_ENDINGS),
)
_SEVERAL_IN_ONE = ("MPO", "HEIF")  # a phone's photo, with a preview or a second view behind it

# What Pillow's decoders raise on damaged bytes.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
    *(LookupError, OverflowError, RuntimeError, TypeError),
)


class UnusablePictureError(ValueError):
    """A file cannot be used as a picture; the message is the reason that the quarantine states."""


@dataclass(frozen=True)
class Square:
    """image: RGB, resolution x resolution, or a bucket's size; sha256: of the file's bytes; width, height: the original's,
    upright; mask: L, its alpha channel, cut like the picture, None where all of it is opaque; camera: whether the file says
    which camera it is from; enlargement: how many times larger a side is drawn than it was; remark: what is not as the file
    says, "" if nothing."""

    image: Image.Image = field(repr=False)
    sha256: str
    width: int
    height: int
    mask: Image.Image | None = field(default=None, repr=False)
    camera: bool = False
    enlargement: float = 1.0
    remark: str = ""


def read_square(
    path: Path,
    resolution: int,
    background: tuple[int, int, int],
    crop: str,
    max_pixels: int,
    buckets: BucketParams | None = None,
) -> Square:
    """Decode, rotate by EXIF, crop ("center") or pad ("pad") to a square or to its bucket, resize, lay on `background` (RGB,
    0-255).

    Raises UnusablePictureError if the file is empty, damaged, animated, larger than `max_pixels` or shows nothing.
    """
    try:
        with path.open("rb") as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of damage that it can read past
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            if handle.tell() == 0:
                raise UnusablePictureError("empty file")
            handle.seek(0)
            image = _decode(handle, path.suffix.lower(), max_pixels)
            camera = ExifTags.Base.Make in image.getexif()
        image, remark = to_srgb(ImageOps.exif_transpose(image))
        size = bucket_size(*image.size, resolution, buckets) if buckets else (resolution, resolution)
        square = cut(image, size, background, crop)
        mask = _alpha(image, size, crop)
    except UnusablePictureError:
        raise
    except UnidentifiedImageError as error:
        raise UnusablePictureError(_unknown(path)) from error
    except Image.DecompressionBombError as error:
        raise UnusablePictureError(f"too large to decode ({error})") from error
    except _DAMAGE as error:
        raise UnusablePictureError(f"unreadable: {error}") from error
    factor = _factor(image.size, size, crop)
    return Square(square, sha256, *image.size, mask, camera, factor, remark)


@cache
def _readable() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads: AVIF came with 11.3, HEIF comes with pillow-heif."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unknown(path: Path) -> str:
    """Why a file whose format is not found out cannot be used."""
    if path.suffix.lower() in HEIC_ENDINGS and "HEIF" not in _readable():
        return "HEIC is read where pillow-heif is installed (pip install pillow-heif): install it, or convert to PNG or JPEG"
    return f"no picture in a known format ({', '.join(_readable())}), or its beginning is damaged"


def _open(handle: BinaryIO, ending: str) -> Image.Image:
    """A picture with its header read, not its pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit here
        return Image.open(handle, formats=[*_readable(), *filter(None, [_BY_ENDING.get(ending)])])


def picture_format(path: Path) -> str | None:
    """Format of the picture in a file of any name, None if it holds none that can be read."""
    try:
        with path.open("rb") as handle:
            return _open(handle, "").format
    except Image.DecompressionBombError:
        return "huge"  # a picture all the same: `read_square` says what is wrong with it
    except _DAMAGE:
        return None


def _decode(handle: BinaryIO, ending: str, max_pixels: int) -> Image.Image:
    """Judge a picture by its header, then decode its pixels."""
    image = _open(handle, ending)
    width, height = image.size
    if width * height > max_pixels:
        raise UnusablePictureError(
            f"{width} x {height} = {width * height / 1e6:.1f} million pixels, more than ingestion.max_pixels = {max_pixels}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _SEVERAL_IN_ONE:
        kind = "several pages" if image.format == "TIFF" else "animated"
        raise UnusablePictureError(f"{kind}: {frames} frames")
    image.load()
    return image


def _factor(given: tuple[int, int], size: tuple[int, int], crop: str) -> float:
    """How many times larger a side is drawn when a picture of the size `given` is cut or padded to `size`."""
    factors = size[0] / given[0], size[1] / given[1]
    return max(factors) if crop == "center" else min(factors)


def bucket_size(width: int, height: int, resolution: int, buckets: BucketParams) -> tuple[int, int]:
    """Width and height of the bucket whose shape is nearest to a picture's: sides are multiples of `step`, the area is that of
    the square or less, the sides' ratio at most `max_ratio`. `step` divides `resolution`."""
    step, area = buckets.step, resolution**2
    longest = int(resolution * math.sqrt(buckets.max_ratio)) // step * step
    found = []
    for long in range(resolution, longest + step, step):
        short = min(long, area // long // step * step)
        if short and long <= buckets.max_ratio * short:
            found += [(long, short), (short, long)]
    shape = math.log(width / height)
    return min(found, key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1]))


def cut(image: Image.Image, size: tuple[int, int], background: tuple[int, int, int], crop: str) -> Image.Image:
    """A picture of any mode and size -> RGB, `size` (width, height): Lanczos on premultiplied alpha."""
    image = rgb_or_rgba(image)
    transparent = image.mode == "RGBA"
    if transparent:
        if image.getchannel("A").getextrema()[1] == 0:
            raise UnusablePictureError("fully transparent")
        image = image.convert("RGBa")  # premultiplied: no fringe of hidden colours along edges
    width, height = image.size
    if crop == "center":
        scale = min(width / size[0], height / size[1])
        kept = size[0] * scale, size[1] * scale
        left, top = (width - kept[0]) / 2, (height - kept[1]) / 2
        box = (left, top, min(width, left + kept[0]), min(height, top + kept[1]))  # rounding must not lead out
        square = image.resize(size, Image.Resampling.LANCZOS, box=box)
    else:
        factor = min(size[0] / width, size[1] / height)  # resized before it is padded: a banner's square could fill the memory
        shrunk = max(1, round(width * factor)), max(1, round(height * factor))
        square = Image.new(image.mode, size, (0, 0, 0, 0) if transparent else background)
        inner = image.resize(shrunk, Image.Resampling.LANCZOS)
        square.paste(inner, ((size[0] - shrunk[0]) // 2, (size[1] - shrunk[1]) // 2))
    if transparent:
        ground = Image.new("RGBA", square.size, (*background, 255))
        square = Image.alpha_composite(ground, square.convert("RGBA")).convert("RGB")
    return square


def _alpha(image: Image.Image, size: tuple[int, int], crop: str) -> Image.Image | None:
    """The alpha channel of a picture of any mode, cut like it."""
    image = rgb_or_rgba(image)
    if image.mode != "RGBA":
        return None
    alpha = cut(image.getchannel("A"), size, (0, 0, 0), crop).convert("L")
    low, high = np.asarray(alpha).min(), np.asarray(alpha).max()
    if high == 0:
        raise UnusablePictureError("nothing of it is left after the crop: centre what it shows, or use ingestion.crop: pad")
    return alpha if low < 255 else None
