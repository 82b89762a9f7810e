"""CIELAB, where distances are about as large as they look, and how far two palettes are apart."""

from functools import cache
from typing import cast

import numpy as np
from PIL import Image, ImageCms

from b4m_pipeline.common.seeding import numpy_generator

_DIRECTIONS = 32
_QUANTILES = 96


def to_lab(picture: Image.Image) -> np.ndarray:
    """A picture, read as sRGB -> (H, W, 3) float32: L of 0 to 100, a and b of -128 to 127."""
    lab = np.asarray(ImageCms.applyTransform(picture.convert("RGB"), _transform("RGB", "LAB")))
    signed = lab[..., 1:].astype(np.int8)
    return np.concatenate([lab[..., :1] * np.float32(100 / 255), signed.astype(np.float32)], axis=-1)


def from_lab(lab: np.ndarray) -> Image.Image:
    """The inverse of `to_lab`, for colours that sRGB does not have its nearest ones."""
    levels = (lab * (255 / 100, 1, 1) + (0, 128, 128)).round().clip(0, 255).astype(np.uint8)  # as bands of their own: from 0
    planes = [Image.fromarray(plane) for plane in np.moveaxis(levels, -1, 0)]
    return cast(Image.Image, ImageCms.applyTransform(Image.merge("LAB", planes), _transform("LAB", "RGB")))


def slices(colours: np.ndarray) -> np.ndarray:
    """Colours (N, 3) -> (96, 32): their quantiles along fixed random directions."""
    along = np.sort(colours @ _directions(), axis=0)
    return along[np.linspace(0, len(along) - 1, _QUANTILES).astype(int)]


def sliced_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The sliced Wasserstein distance of two palettes, colours (N, 3) and (M, 3), in the colours' units."""
    return 2 * float(np.abs(slices(one) - slices(other)).mean())  # a unit of colour is half a unit along a direction


@cache
def _transform(source: str, target: str) -> ImageCms.ImageCmsTransform:
    profiles = {"RGB": ImageCms.createProfile("sRGB"), "LAB": ImageCms.createProfile("LAB")}
    return ImageCms.buildTransform(profiles[source], profiles[target], source, target)


@cache
def _directions() -> np.ndarray:
    """(3, 32), of unit length."""
    drawn = numpy_generator("palette").normal(size=(3, _DIRECTIONS))
    return (drawn / np.linalg.norm(drawn, axis=0)).astype(np.float32)
