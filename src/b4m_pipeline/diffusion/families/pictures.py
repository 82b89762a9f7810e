"""Pictures to be encoded: as tensors, in batches of one size."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from b4m_pipeline.common.progress import Progress
from b4m_pipeline.diffusion.families.identity import BaseModelError
from b4m_pipeline.diffusion.families.offload import pictures_at_once

Latents = tuple[torch.Tensor, torch.Tensor]
"""Mean and standard deviation of a picture's latents, (C, h, w) each, float32."""


def in_batches(
    pictures: list[Image.Image],
    multiple: int,
    encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    batch_size: int | None = None,
) -> list[Latents]:
    """Encode pictures of one size together, so many at once (None: as many as fit). encode: images (B, 3, H, W) in [-1, 1] ->
    means and standard deviations (B, C, h, w). Raises BaseModelError for sides that are no multiples of `multiple` pixels."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, picture in enumerate(pictures):
        width, height = picture.size
        if width % multiple or height % multiple:
            raise BaseModelError(
                f"a picture of {width} x {height} pixels: this base model needs multiples of {multiple}, see "
                "base_model.resolution and ingestion.buckets.step"
            )
        by_size.setdefault(picture.size, []).append(index)
    encoded: dict[int, Latents] = {}
    with Progress("encoding pictures", len(pictures)) as bar:
        for (width, height), places in by_size.items():
            count = batch_size or pictures_at_once(width, height)
            for start in range(0, len(places), count):
                part = places[start : start + count]
                batch = torch.from_numpy(np.stack([np.asarray(pictures[index].convert("RGB")) for index in part]))
                images = batch.permute(0, 3, 1, 2).float().div(127.5).sub(1)
                encoded |= dict(zip(part, zip(*encode(images), strict=True), strict=True))
                bar.update(len(part))
    return [encoded[index] for index in range(len(pictures))]
