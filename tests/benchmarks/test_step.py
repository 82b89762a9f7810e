"""The benchmark of a training step: that every way learns and is what it says it is, and that figures are read rightly."""

import argparse
import dataclasses
import math

import pytest
import torch
from benchmarks._alone import measure_alone
from benchmarks._breakdown import OPTIMIZER, OTHER, count_flops, kind_of, time_by_kind
from benchmarks._models import UNETS, Settings, load_text_encoders, load_unet
from benchmarks._timing import estimate, paired_ratio, paired_share, table, time_rounds
from benchmarks._ways import WAYS, Make, Ours, PlainFactors, PlainLora, Released
from benchmarks.scaling import sweep
from diffusers import UNet2DConditionModel

from benchmarks import _models
from benchmarks import step as module

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def settings(tiny_sdxl) -> Settings:
    return Settings(str(tiny_sdxl), 32, 2, 2, 4, TARGETS, "orthogonal", "float32", "cpu")


def read(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    module.add_settings(parser)
    return module.read_settings(parser.parse_args(words))


@pytest.mark.parametrize("way", [*WAYS, "plain factors", "make"])
def test_every_way_learns(settings, way):
    built = {**WAYS, "plain factors": PlainFactors, "make": Make}[way](settings)
    before = [parameter.detach().clone() for parameter in built.learnt()]
    losses = built.step() + built.step()
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert all(not torch.equal(old, new) for old, new in zip(before, built.learnt(), strict=True))
    expected = {"ours, counterparts in turn": 4, "make": 4}.get(way, settings.pictures)
    assert built.pictures == expected


def test_ours_moves_its_own_half_alone(settings):
    ours = Ours(settings, counterparts=0)
    layers = ours.layers.values()
    others = [layer.b.detach().clone() for layer in layers]
    frozen = [part.clone() for layer in layers for part in layer.frozen()]
    own = [layer.a.detach().clone() for layer in layers]
    ours.step()
    ours.step()
    assert all(not torch.equal(old, layer.a) for old, layer in zip(own, layers, strict=True))
    assert all(torch.equal(old, layer.b) for old, layer in zip(others, layers, strict=True))
    now = [part for layer in layers for part in layer.frozen()]
    assert all(torch.equal(old, new) for old, new in zip(frozen, now, strict=True))


def test_preservation_is_part_of_the_step_that_measures_it(settings):
    with_it, without = Ours(settings, preserving=True), Ours(settings)
    for ours in (with_it, without):
        ours.step()
        ours.step()
    assert any(not torch.equal(a, b) for a, b in zip(with_it.learnt(), without.learnt(), strict=True))


def test_the_released_way_does_what_its_cost_lines_say(settings):
    released = Released(settings)
    encoded, passes = [], []
    released.vae.encoder.register_forward_hook(lambda _, inputs, __: encoded.append(inputs[0].dtype))
    released.unet.register_forward_hook(lambda *_: passes.append(1))
    assert len(released.text_encoders) == 2 and len(released.optimizers) == 2
    released.step()  # lora_B was zero before it, so that lora_A had no gradient
    released.step()
    assert encoded == [torch.float32] * 6 and len(passes) == 6  # two steps: the concept's batch and two counterparts'
    downs, ups = released.groups
    assert all(up.grad is None for up in ups)  # stepped last, zeroed
    for down in downs:  # zeroed before the counterparts' loss left its own there
        half = down.shape[1] // 2
        assert down.grad.shape == down.shape
        assert down.grad[:, :half].abs().max() == 0
    assert any(down.grad.abs().max() > 0 for down in downs)
    frozen = downs[0].detach()[:, : downs[0].shape[1] // 2].clone()
    released.step()
    assert not torch.equal(frozen, downs[0][:, : frozen.shape[1]])  # weight decay moves them


def test_the_released_way_without_counterparts_is_refused(settings):
    with pytest.raises(ValueError, match="counterpart"):
        Released(Settings(settings.size, 32, 2, 0, 4, TARGETS, "free", "float32", "cpu"))


@pytest.mark.slow
def test_a_process_of_its_own_tells_time_and_memory(settings):
    figures = measure_alone(settings, "ours", steps=2)
    assert len(figures["seconds"]) == 2 and figures["pictures"] == settings.pictures
    assert 0.05 < figures["imports_gib"] < figures["peak_gib"]


@pytest.mark.slow
def test_what_cannot_be_measured_alone_says_why(settings):
    with pytest.raises(RuntimeError, match="released could not be measured alone: .*counterpart"):
        measure_alone(Settings(settings.size, 32, 2, 0, 4, TARGETS, "free", "float32", "cpu"), "released", steps=1)


def test_ways_are_compared_by_their_rounds_and_by_their_memory_alone(settings, monkeypatch):
    peaks = {"ours": 2.0, "plain LoRA": 3.0}
    alone = lambda _, way, steps: {"seconds": [1e9], "pictures": settings.pictures, "peak_gib": peaks[way]}  # noqa: E731
    monkeypatch.setattr(module, "measure_alone", alone)
    shown, figures = module.compare_ways(settings, ["plain LoRA"], rounds=3, steps=1, warm_up=0)
    assert list(figures) == ["ours", "plain LoRA"]
    assert all(len(own["seconds"]) == 3 and max(own["seconds"]) < 1e9 for own in figures.values())
    ours, plain = shown.splitlines()[2:]
    assert ours.startswith("| ours |") and ours.endswith("| 1 | 2.00 | 1.00 |")
    assert plain.startswith("| plain LoRA |") and plain.endswith("| 3.00 | 1.50 |")


@pytest.mark.parametrize(("size", "parameters"), [("sdxl", 2_567_463_684), ("sd15", 859_520_964)])
def test_full_sizes_are_those_of_the_real_models(size, parameters):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[size])
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "transformer_layers_per_block": 1,
}
SMALL_CLIP = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("size", ["sdxl", "sd15"])
def test_random_weights_go_every_way(monkeypatch, size):
    """With the real configurations' own fields, but few channels."""
    monkeypatch.setitem(UNETS, size, UNETS[size] | SMALL_UNET)
    monkeypatch.setattr(_models, "VAE", _models.VAE | {"block_out_channels": (8,) * 4, "norm_num_groups": 4})
    for name in ("_CLIP_L", "_CLIP_BIG_G"):
        monkeypatch.setattr(_models, name, SMALL_CLIP)
    settings = Settings(size, 64, 1, 3, 4, TARGETS, "orthogonal", "bfloat16", "cpu", checkpointing=True)
    first, second = (load_unet(settings) for _ in range(2))
    assert first.dtype == torch.bfloat16 and torch.equal(first.conv_in.weight, second.conv_in.weight)
    assert torch.get_default_dtype() == torch.float32
    for way in (Ours, Released, PlainLora):
        assert all(math.isfinite(loss) for loss in way(settings).step())
    encoders = load_text_encoders(settings)
    assert len(encoders) == {"sdxl": 2, "sd15": 1}[size] and encoders[0].dtype == torch.bfloat16


def test_full_size_on_a_cpu_is_refused_unless_forced():
    with pytest.raises(ValueError, match="--size sdxl is full size and needs a GPU"):
        read("--size=sdxl", "--device=cpu")
    forced = read("--size=sdxl", "--device=cpu", "--force", "--rank=8", "--dtype=bfloat16", "--checkpointing")
    assert (forced.rank, forced.resolution, forced.precision, forced.checkpointing) == (8, 512, "bf16", True)


def test_checkpointing_reaches_the_unet(settings):
    assert load_unet(dataclasses.replace(settings, checkpointing=True)).is_gradient_checkpointing
    assert not load_unet(settings).is_gradient_checkpointing


def test_rounds_are_interleaved_and_warm_up_is_dropped():
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = time_rounds(steps, "cpu", rounds=2, steps_per_round=2, warm_up=1)
    assert "".join(order) == "aabb" * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_round_by_round():
    machine = [1.0, 5.0, 2.0, 0.5, 9.0, 3.0]  # slow and fast rounds, for both alike
    ratio = paired_ratio([2 * value for value in machine], machine)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    uneven = paired_ratio([2.0, 3.0, 4.0, 3.0, 2.5], [1.0] * 5)
    assert uneven.median == 3 and 2 <= uneven.low < 3 < uneven.high <= 4
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])


def test_a_share_is_what_leaving_a_part_out_saves():
    assert paired_share([4.0, 8.0], [3.0, 6.0]).median == pytest.approx(0.25)
    assert paired_share([4.0, 8.0], [5.0, 10.0]).percent() == "-25.0% [-25.0%, -25.0%]"


def test_an_interval_narrows_with_more_rounds():
    few, many = (estimate([1.0, 2.0, 3.0, 4.0, 5.0] * times) for times in (1, 20))
    assert few.median == many.median == 3
    assert many.high - many.low < few.high - few.low


def test_operators_are_told_apart_by_their_callers():
    assert kind_of(["aten::copy_", "aten::convolution_backward", "ConvolutionBackward0"]) == "convolution"
    assert kind_of(["aten::bmm", "BmmBackward0"]) == "attention"
    assert kind_of(["aten::addmm", "aten::linear"]) == "matrix product"
    assert kind_of(["aten::native_group_norm"]) == "normalisation"
    assert kind_of(["aten::mul_", "Optimizer.step#AdamW.step"]) == OPTIMIZER
    assert kind_of(["aten::linalg_vector_norm"]) == OTHER


def test_a_step_is_broken_down(settings):
    ours = Ours(settings)
    shares = time_by_kind(ours.step, "cpu", steps=1)
    assert sum(shares.values()) == pytest.approx(1)
    assert {"convolution", "matrix product", "attention", "normalisation", OPTIMIZER} <= set(shares)
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert count_flops(ours.step) > count_flops(Ours(settings, counterparts=0).step) > 0


def test_one_setting_is_changed_at_a_time(settings):
    changed = sweep(settings)
    assert [variant.counterparts for variant in changed["counterparts"]] == [0, 1, 2, 3]
    assert [variant.batch for variant in changed["batch"]] == [1, 2, 4, 8]
    assert all(variant.rank % 2 == 0 and variant.batch == 2 for variant in changed["rank"])
    assert [variant.resolution for variant in changed["resolution"]] == [32, 64]


def test_table_is_markdown():
    assert table(["way", "ms"], [["ours", "1"]]) == "| way | ms |\n| --- | --- |\n| ours | 1 |"
