"""Halves put together, and what is refused."""

import pytest
import torch

from b4m_pipeline.method.combine import reconstruct
from b4m_pipeline.method.frame import FrameMismatchError
from tests.method.helpers import METADATA, export_half


def test_reconstruction_is_the_plain_sum_of_two_orthogonal_halves(tiny_sdxl):
    half_a, half_b = (export_half(tiny_sdxl, side, seed) for side, seed in (("lora_A", 1), ("lora_B", 2)))
    joined = reconstruct(half_a, half_b, METADATA)
    for name in joined.modules():
        assert torch.equal(joined.tensors[f"{name}.lora_A.weight"], half_a.tensors[f"{name}.lora_A.weight"])
        assert torch.equal(joined.tensors[f"{name}.lora_B.weight"], half_b.tensors[f"{name}.lora_B.weight"])
        assert torch.allclose(joined.delta(name), half_a.delta(name) + half_b.delta(name), atol=1e-5)


def test_halves_of_two_frames_are_refused_by_both_names(tiny_sdxl):
    half_a, half_b = export_half(tiny_sdxl, "lora_A", 1), export_half(tiny_sdxl, "lora_B", 1, scale=2.0)
    with pytest.raises(FrameMismatchError) as error:
        reconstruct(half_a, half_b, METADATA)
    assert half_a.metadata["frame"] in str(error.value) and half_b.metadata["frame"] in str(error.value)


def test_the_same_half_twice_is_refused(tiny_sdxl):
    half = export_half(tiny_sdxl, "lora_A", 1)
    with pytest.raises(FrameMismatchError, match="half of lora_A"):
        reconstruct(half, half, METADATA)
