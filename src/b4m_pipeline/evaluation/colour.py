"""Colour: how alike the palettes of two pictures are. The other measures hardly see it: feature networks are trained to know a
thing in any colour."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageCms

from b4m_pipeline.common.seeding import numpy_generator

_SIDE = 48  # pixels a side that a picture is shrunk to
_DIRECTIONS = 32
_QUANTILES = 96
_SCALE = 20.0  # CIELAB units at which the likeness has fallen to 1 / e


def palettes(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures -> (N, D): quantiles of their pixels' CIELAB colours along fixed random directions. The mean difference of
    two rows is the sliced Wasserstein distance of two palettes, wherever in the picture the colours are."""
    rows = []
    for image in images:
        small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
        lab = np.asarray(ImageCms.applyTransform(small, _to_lab()))
        lightness = lab[..., 0].astype(np.float32) * (100 / 255)
        colour = lab[..., 1:].astype(np.int8).astype(np.float32)  # a and b are signed
        pixels = np.concatenate([lightness[..., None], colour], -1).reshape(-1, 3)
        along = np.sort(pixels @ _directions(), axis=0)
        rows.append(along[np.linspace(0, len(along) - 1, _QUANTILES).astype(int)].ravel())
    return torch.from_numpy(np.stack(rows))


def palette_likeness(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Palettes (N, D) and (M, D) -> (N, M), 1 for equal ones, nearing 0 with the distance."""
    distance = 2 * (pictures[:, None] - references[None]).abs().mean(-1)  # a unit of colour is half a unit along a direction
    return torch.exp(-distance / _SCALE)


@cache
def _to_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


@cache
def _directions() -> np.ndarray:
    """(3, 32), of unit length."""
    drawn = numpy_generator("palette").normal(size=(3, _DIRECTIONS))
    return (drawn / np.linalg.norm(drawn, axis=0)).astype(np.float32)
