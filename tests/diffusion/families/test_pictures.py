"""Pictures of several sizes come back in their order, and no batch mixes sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from b4m_pipeline.diffusion.families import BaseModelError
from b4m_pipeline.diffusion.families.pictures import in_batches


def test_pictures_are_encoded_by_size_and_given_back_in_order() -> None:
    sizes = [(16, 8), (8, 8), (16, 8), (16, 8)]
    pictures = [Image.new("RGB", size, (index * 50, 0, 255)) for index, size in enumerate(sizes)]
    seen = []

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(tuple(images.shape))
        return images, images * 0

    encoded = in_batches(pictures, 8, encode, batch_size=2)
    assert sorted(seen) == [(1, 3, 8, 8), (1, 3, 8, 16), (2, 3, 8, 16)]
    for picture, (mean, std) in zip(pictures, encoded, strict=True):
        expected = np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1
        assert np.allclose(mean, expected) and not std.any()
    with pytest.raises(BaseModelError, match="a picture of 16 x 8 pixels: this base model needs multiples of 16"):
        in_batches(pictures, 16, encode)
