"""One picture file -> one checked RGB square, or a rectangle of about its own shape where buckets are used."""

import hashlib
import math
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from b4m_pipeline.inputs.params import BucketParams

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # decoders that a picture's bytes may reach

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
    which camera it is from."""

    image: Image.Image = field(repr=False)
    sha256: str
    width: int
    height: int
    mask: Image.Image | None = field(default=None, repr=False)
    camera: bool = False


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
        with path.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            if handle.tell() == 0:
                raise UnusablePictureError("empty file")
            handle.seek(0)
            image = _decode(handle, max_pixels)
            camera = ExifTags.Base.Make in image.getexif()
        image = ImageOps.exif_transpose(image)
        size = bucket_size(*image.size, resolution, buckets) if buckets else (resolution, resolution)
        square = cut(image, size, background, crop)
        mask = _alpha(image, size, crop)
    except UnusablePictureError:
        raise
    except UnidentifiedImageError as error:
        raise UnusablePictureError(f"no picture in a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UnusablePictureError(f"too large to decode ({error})") from error
    except _DAMAGE as error:
        raise UnusablePictureError(f"unreadable: {error}") from error
    return Square(square, sha256, *image.size, mask, camera)


def _decode(handle, max_pixels: int) -> Image.Image:
    """Judge a picture by its header, then decode its pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit here
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]  # AVIF came with Pillow 11.3
        image = Image.open(handle, formats=known)
    width, height = image.size
    if width * height > max_pixels:
        raise UnusablePictureError(
            f"{width} x {height} = {width * height / 1e6:.1f} million pixels, more than ingestion.max_pixels = {max_pixels}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's MPO is one photo with a preview or a second view behind it
        kind = "several pages" if image.format == "TIFF" else "animated"
        raise UnusablePictureError(f"{kind}: {frames} frames")
    image.load()
    return image


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
    image = _rgb_or_rgba(image)
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
    image = _rgb_or_rgba(image)
    if image.mode != "RGBA":
        return None
    alpha = cut(image.getchannel("A"), size, (0, 0, 0), crop).convert("L")
    low, high = np.asarray(alpha).min(), np.asarray(alpha).max()
    if high == 0:
        raise UnusablePictureError("nothing of it is left after the crop: centre what it shows, or use ingestion.crop: pad")
    return alpha if low < 255 else None


def _rgb_or_rgba(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, 32 bits or floating point -> mode L, scaled; Pillow's own conversion clips them to white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:  # no range is stated: the narrowest usual one that holds the values
        high = float(values.max())
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((limit for limit in usual if high <= limit), high)
    return Image.fromarray((np.clip(values / white, 0, 1) * 255 + 0.5).astype(np.uint8))
