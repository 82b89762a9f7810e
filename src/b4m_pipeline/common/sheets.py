"""What all sheets share. It imports nothing heavy: the ingestion pipeline draws a sheet too."""

from PIL import Image, ImageOps


def in_cell(image: Image.Image, side: int) -> Image.Image:
    """A picture of any shape as large as a cell of `side` pixels holds, in its middle, on white. RGB."""
    return ImageOps.pad(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC, color="white")
