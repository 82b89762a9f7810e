"""Halves put together, and what is refused."""

import json
from datetime import datetime, timedelta

import pytest
import torch

from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import join_halves, reconstruct
from b4m_pipeline.method.frame import FrameMismatchError
from tests.method.helpers import METADATA, export_half
from tests.training.helpers import frame, train_half


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


def test_joining_keeps_lineage(tiny_halves, tiny_joined):
    content, style = tiny_halves
    content.metadata["registry_uri"] = "models:/b4m-content-cup/3"
    again = join_halves(content, style, "lora_A")
    del content.metadata["registry_uri"]
    assert json.loads(again.metadata["parents"]) == ["models:/b4m-content-cup/3"]
    assert again.metadata["name"] == "cup-ink" and again.metadata["content_token"] == "snq"
    assert tiny_joined.metadata["frame"] == content.metadata["frame"]
    assert again.metadata["architecture"] == "other" and again.metadata["prediction_type"] == "v_prediction"
    assert again.metadata["created"] == max(half.metadata["created"] for half in tiny_halves)
    assert datetime.fromisoformat(again.metadata["created"]).utcoffset() == timedelta(0)


def test_joining_refuses_other_frames_and_swapped_halves(tiny_halves, tiny_training_set, tiny_base):
    content, style = tiny_halves
    stranger, _ = train_half("style", tiny_training_set, tiny_base, frame(seed=1), steps=1)
    with pytest.raises(FrameMismatchError, match=stranger.metadata["frame"]):
        join_halves(content, stranger, "lora_A")
    with pytest.raises(FrameMismatchError, match="no content half"):
        join_halves(style, content, "lora_A")
    free = json.loads(style.metadata["params"])
    free["frame"]["halves"] = "free"
    other_way = Adapter(style.tensors, style.metadata | {"params": json.dumps(free)}, style.lora_config)
    with pytest.raises(FrameMismatchError, match="frame.halves orthogonal, ink with free"):
        join_halves(content, other_way, "lora_A")
