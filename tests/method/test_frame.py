"""The frame: what is frozen, and by which fingerprint it is known."""

import copy

import pytest
import torch

from b4m_pipeline.method.frame import Frame, FrameMismatchError, TargetError, frame_of
from b4m_pipeline.method.layers import find_layers
from tests.method.helpers import export_half, make_frame


def test_frozen_blocks_annihilate_each_other_on_every_shape():
    shapes = {"square": (32, 32), "wide": (16, 50), "tall": (50, 16), "odd": (33, 21), "large": (640, 2048)}
    frame = Frame(0, 16, 16.0, 0.5, "exact", 1.0, "tiny", shapes)
    for name, (m, n) in shapes.items():
        blocks = frame.blocks(name)
        assert blocks.frozen_b.shape == (m // 2, 16) and blocks.frozen_a.shape == (16, n // 2)
        assert (blocks.frozen_b @ blocks.frozen_a).norm() <= 1e-6
        assert blocks.frozen_b.norm() > 1 and blocks.frozen_a.norm() > 1


def test_frame_depends_on_neither_global_rng_nor_order(unet):
    first = make_frame(unet)
    torch.manual_seed(123)
    torch.randn(10)
    second = make_frame(unet, layers=dict(reversed(first.layers.items())))
    assert first.fingerprint == second.fingerprint
    name = next(iter(first.layers))
    assert torch.equal(first.blocks(name).frozen_a, second.blocks(name).frozen_a)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"rank": 2}, {"alpha": 8.0}, {"split": 0.25}, {"init": "paper"}, {"scale": 2.0}, {"base_model": "x"}],
)
def test_fingerprint_knows_every_part(unet, change):
    assert make_frame(unet).fingerprint != make_frame(unet, **change).fingerprint


def test_frame_scale_multiplies_the_frozen_blocks(unet):
    name = next(iter(make_frame(unet).layers))
    once, thrice = make_frame(unet).blocks(name), make_frame(unet, scale=3.0).blocks(name)
    assert torch.allclose(thrice.frozen_a, 3 * once.frozen_a) and torch.allclose(thrice.frozen_b, 3 * once.frozen_b)


def test_frame_can_be_rebuilt_from_an_adapter(tiny_sdxl):
    half = export_half(tiny_sdxl, "lora_A", 1)
    assert frame_of(half).fingerprint == half.metadata["frame"]
    moved = copy.deepcopy(half)
    moved.metadata["frame"] = "0" * 16
    with pytest.raises(FrameMismatchError):
        frame_of(moved)


def test_wrong_targets_and_ranks_are_named(unet):
    with pytest.raises(TargetError, match="to_quack"):
        find_layers(unet, ["to_q", "to_quack"])
    with pytest.raises(TargetError, match=r"rank must be <= min\(in, out\) = 16, got 64 for "):
        make_frame(unet, rank=64, layers={"mid.to_q": (16, 24)})
