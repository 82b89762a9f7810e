"""What the method promises, layer by layer, on a tiny random SDXL."""

import dataclasses

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from b4m_pipeline.method.combine import reconstruct
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.method.layers import export, inject, load_halves, route_gradients
from tests.method.helpers import METADATA, export_half, forward, make_frame, randomise, words_frame

FRAMES = pytest.mark.parametrize("frame_of", [make_frame, words_frame], ids=["blocks", "words"])


@FRAMES
@pytest.mark.parametrize("halves", ["orthogonal", "free"])
def test_exact_frame_leaves_the_base_model_untouched_at_step_0(unet, halves, frame_of):
    before = forward(unet)
    layers = inject(unet, frame_of(unet), halves)
    assert (forward(unet) - before).abs().max() <= 1e-6
    for layer in layers.values():
        lora_a, lora_b = layer.factors()
        assert (lora_b @ lora_a).norm() <= 1e-6


class RefuseTwoDevices(TorchDispatchMode):
    """What a GPU does: it calculates with no tensors of the CPU, numbers apart, and copies them only."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
        if len({tensor.device.type for tensor in tensors}) > 1 and func is not torch.ops.aten.copy_.default:
            raise RuntimeError(f"{func} was given tensors of two devices")
        return func(*args, **(kwargs or {}))


@FRAMES
@pytest.mark.parametrize("halves", ["orthogonal", "free"])
def test_a_model_can_be_on_another_device_than_blocks_are_drawn_on(unet, halves, frame_of):
    unet.to("meta")
    with RefuseTwoDevices():
        layers = inject(unet, frame_of(unet), halves)
        factors = [factor for layer in layers.values() for factor in layer.factors()]
    held = [tensor for layer in layers.values() for tensor in (*layer.module.parameters(), *layer.module.buffers())]
    assert {tensor.device.type for tensor in [*held, *factors]} == {"meta"}


def test_both_halves_have_a_gradient_at_step_0(unet):
    layers = inject(unet, make_frame(unet), "orthogonal")
    forward(unet).square().mean().backward()
    for layer in layers.values():
        assert layer.a.grad.norm() > 0 and layer.b.grad.norm() > 0


def test_paper_frame_starts_as_released(unet):
    layers = inject(unet, make_frame(unet, init="paper"), "free")
    for layer in layers.values():
        assert layer.b.abs().max() == 0
        assert layer.a.detach().std() == pytest.approx(0.5, rel=0.5)  # N(0, 1/r) with r = 4


def test_frozen_halves_stay_bit_identical_under_adamw_with_weight_decay(unet):
    frame = make_frame(unet)
    layers = inject(unet, frame, "free")
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(parameters) == 2 * len(layers)
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.5)
    for _ in range(12):
        optimizer.zero_grad()
        forward(unet).square().mean().backward()
        optimizer.step()
    for name, layer in layers.items():
        blocks, (lora_a, lora_b) = frame.blocks(name), layer.factors()
        d_b, d_a = frame.sizes(name)
        assert torch.equal(lora_a[:, :d_a], blocks.frozen_a) and torch.equal(lora_b[:d_b], blocks.frozen_b)
        assert lora_a[:, d_a:].abs().max() > 0.1


def test_orthogonal_halves_never_meet(unet):
    layers = inject(unet, frame := make_frame(unet), "orthogonal")
    randomise(layers)
    for name, layer in layers.items():
        (lora_a, lora_b), (d_b, d_a) = layer.factors(), frame.sizes(name)
        assert (lora_b[d_b:] @ lora_a[:, d_a:]).norm() <= 1e-5  # L_B L_A
        assert (lora_b[:d_b] @ lora_a[:, d_a:]).norm() > 0.1  # F_B L_A: lora_A's concept
        assert (lora_b[d_b:] @ lora_a[:, :d_a]).norm() > 0.1  # L_B F_A: lora_B's concept


@FRAMES
@pytest.mark.parametrize("halves", ["orthogonal", "free"])
def test_pictures_of_one_pass_can_teach_a_factor_each(unet, halves, frame_of):
    """Each factor's gradient is that of its own pictures alone, and nothing of what the layers give changes."""
    layers = inject(unet, frame_of(unet), halves)
    randomise(layers)
    sides = {"lora_B": [layer.b for layer in layers.values()], "lora_A": [layer.a for layer in layers.values()]}
    whole = [parameter for side in sides.values() for parameter in side]
    given = forward(unet)
    route_gradients(layers, ("lora_B", "lora_A"), [1, len(given) - 1])
    taught = forward(unet)
    assert torch.allclose(taught, given, atol=1e-6)
    losses = taught.square().mean((1, 2, 3))
    for rows, own, other in ((slice(0, 1), "lora_B", "lora_A"), (slice(1, None), "lora_A", "lora_B")):
        gradients = torch.autograd.grad(losses[rows].sum(), whole, retain_graph=True)
        found = dict(zip(("lora_B", "lora_A"), (gradients[: len(layers)], gradients[len(layers) :]), strict=True))
        plain = torch.autograd.grad(given.square().mean((1, 2, 3))[rows].sum(), sides[own], retain_graph=True)
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found[other])
        for gradient, wanted in zip(found[own], plain, strict=True):
            assert torch.allclose(gradient, wanted, atol=1e-4 * float(wanted.abs().max()))
    route_gradients(layers, ("lora_B", "lora_A"), [2, 3])
    with torch.no_grad():
        assert torch.allclose(forward(unet), given, atol=1e-6)
    with pytest.raises(ValueError, match="batch of 5, this one has 2"):
        forward(unet)


def test_loading_halves_brings_the_adapter_back(tiny_sdxl, unet):
    half_a, half_b = (export_half(tiny_sdxl, side, seed) for side, seed in (("lora_A", 1), ("lora_B", 2)))
    joined = reconstruct(half_a, half_b, METADATA)
    frame = make_frame(unet)
    layers = inject(unet, frame, "free")
    load_halves(layers, joined, frame)
    again = export(layers, frame, METADATA)
    assert all(torch.equal(again.tensors[key], joined.tensors[key]) for key in joined.tensors)
    with pytest.raises(FrameMismatchError):
        load_halves(layers, joined, dataclasses.replace(frame, seed=9))


@FRAMES
@pytest.mark.parametrize("alpha", [4.0, 2.0])
def test_a_stock_pipeline_draws_what_the_training_model_draws(tiny_sdxl, unet, tmp_path, alpha, frame_of):
    frame = frame_of(unet, alpha=alpha)
    layers = inject(unet, frame, "free")
    randomise(layers)
    save_adapter(export(layers, frame, METADATA), tmp_path)
    stock = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    plain = draw(stock)
    stock.load_lora_weights(tmp_path)
    trained = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, unet=unet)
    assert (draw(stock) - draw(trained)).abs().max() <= 1e-5
    assert (draw(stock) - plain).abs().max() > 1e-3


def draw(pipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("a cat", num_inference_steps=3, height=32, width=32, generator=generator, output_type="pt").images


@pytest.mark.parametrize(
    ("frame_of", "init"),
    [(make_frame, "exact"), (make_frame, "paper"), (words_frame, "exact")],
    ids=["exact", "paper", "words"],
)
@pytest.mark.parametrize("halves", ["orthogonal", "free"])
def test_a_layer_does_what_its_factors_say(unet, halves, init, frame_of):
    """The pass of a layer goes its own ways; forward and gradients are those of lora_B lora_A."""
    layers = inject(unet, frame_of(unet, init=init, alpha=6.0, scale=2.0), halves)
    randomise(layers)
    for layer in layers.values():
        x = torch.randn(2, 3, layer.module.in_features, generator=torch.Generator().manual_seed(0))
        parameters = [layer.a, layer.b]

        def by_factors(x=x, layer=layer):
            lora_a, lora_b = layer.factors()
            return layer.module.get_base_layer()(x) + 1.5 * x @ lora_a.T @ lora_b.T

        passed = layer.module(x)
        assert torch.allclose(passed, by_factors(), atol=1e-5)
        gradients = torch.autograd.grad(passed.square().mean(), parameters)
        for own, wanted in zip(gradients, torch.autograd.grad(by_factors().square().mean(), parameters), strict=True):
            assert torch.allclose(own, wanted, atol=1e-5)
