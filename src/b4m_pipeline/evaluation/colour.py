"""Colour: how alike the palettes of two pictures are. The other measures hardly see it: feature networks are trained to know a
thing in any colour."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from b4m_pipeline.common.colour import slices, to_lab

_SIDE = 48  # pixels a side that a picture is shrunk to
_SCALE = 20.0  # CIELAB units at which the likeness has fallen to 1 / e


def palettes(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures -> (N, D): quantiles of their pixels' CIELAB colours along fixed random directions. The mean difference of
    two rows is the sliced Wasserstein distance of two palettes, wherever in the picture the colours are."""
    small = [image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX) for image in images]
    return torch.from_numpy(np.stack([slices(to_lab(image).reshape(-1, 3)).ravel() for image in small]))


def palette_likeness(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Palettes (N, D) and (M, D) -> (N, M), 1 for equal ones, nearing 0 with the distance."""
    distance = 2 * (pictures[:, None] - references[None]).abs().mean(-1)  # a unit of colour is half a unit along a direction
    return torch.exp(-distance / _SCALE)
