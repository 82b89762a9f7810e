"""What the method promises, layer by layer, on a tiny random SDXL."""

import copy
import dataclasses

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from b4m_pipeline.method import plp
from b4m_pipeline.method.adapter import save_adapter

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_embedding.linear_1", "time_emb_proj"]


@pytest.fixture
def unet(tiny_sdxl):
    return UNet2DConditionModel.from_pretrained(tiny_sdxl, subfolder="unet")


def make_frame(unet, **changes) -> plp.Frame:
    fields = {"seed": 0, "rank": 4, "alpha": 4.0, "split": 0.5, "init": "exact", "scale": 1.0, "base_model": "tiny"}
    return plp.Frame(**(fields | {"layers": plp.find_layers(unet, TARGETS)} | changes))


def forward(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    noisy = torch.randn(2, 4, 16, 16, generator=generator)
    embeds = torch.randn(2, 6, 24, generator=generator)
    added = {"text_embeds": torch.randn(2, 16, generator=generator), "time_ids": torch.full((2, 6), 32.0)}
    return unet(noisy, torch.tensor([3, 700]), embeds, added_cond_kwargs=added).sample


def randomise(layers, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(layers):
            for parameter in (layers[name].a, layers[name].b):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


METADATA = {"kind": "content", "name": "c", "base_model": "tiny", "data_digest": "d", "params": "{}", "code_version": "0"}


@pytest.mark.parametrize("halves", ["orthogonal", "free"])
def test_exact_frame_leaves_the_base_model_untouched_at_step_0(unet, halves):
    before = forward(unet)
    layers = plp.inject(unet, make_frame(unet), halves)
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


@pytest.mark.parametrize("order", ["blocks", "shuffled"])
@pytest.mark.parametrize("halves", ["orthogonal", "free"])
def test_a_model_can_be_on_another_device_than_blocks_are_drawn_on(unet, halves, order):
    unet.to("meta")
    with RefuseTwoDevices():
        layers = plp.inject(unet, make_frame(unet, order=order), halves)
        factors = [factor for layer in layers.values() for factor in layer.factors()]
    held = [tensor for layer in layers.values() for tensor in (*layer.module.parameters(), *layer.module.buffers())]
    assert {tensor.device.type for tensor in [*held, *factors]} == {"meta"}


def test_frozen_blocks_annihilate_each_other_on_every_shape():
    shapes = {"square": (32, 32), "wide": (16, 50), "tall": (50, 16), "odd": (33, 21), "large": (640, 2048)}
    frame = plp.Frame(0, 16, 16.0, 0.5, "exact", 1.0, "tiny", shapes)
    for name, (m, n) in shapes.items():
        blocks = frame.blocks(name)
        assert blocks.frozen_b.shape == (m // 2, 16) and blocks.frozen_a.shape == (16, n // 2)
        assert (blocks.frozen_b @ blocks.frozen_a).norm() <= 1e-6
        assert blocks.frozen_b.norm() > 1 and blocks.frozen_a.norm() > 1


def test_both_halves_have_a_gradient_at_step_0(unet):
    layers = plp.inject(unet, make_frame(unet), "orthogonal")
    forward(unet).square().mean().backward()
    for layer in layers.values():
        assert layer.a.grad.norm() > 0 and layer.b.grad.norm() > 0


def test_paper_frame_starts_as_released(unet):
    layers = plp.inject(unet, make_frame(unet, init="paper"), "free")
    for layer in layers.values():
        assert layer.b.abs().max() == 0
        assert layer.a.detach().std() == pytest.approx(0.5, rel=0.5)  # N(0, 1/r) with r = 4


@pytest.mark.parametrize("order", ["blocks", "shuffled"])
def test_frozen_halves_stay_bit_identical_under_adamw_with_weight_decay(unet, order):
    frame = make_frame(unet, order=order)
    layers = plp.inject(unet, frame, "free")
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(parameters) == 2 * len(layers)
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.5)
    for _ in range(12):
        optimizer.zero_grad()
        forward(unet).square().mean().backward()
        optimizer.step()
    for name, layer in layers.items():
        blocks, (lora_a, lora_b) = frame.blocks(name), layer.factors()
        (d_b, d_a), (rows, columns) = frame.sizes(name), frame.places(name)
        lora_a, lora_b = lora_a[:, columns], lora_b[rows]
        assert torch.equal(lora_a[:, :d_a], blocks.frozen_a) and torch.equal(lora_b[:d_b], blocks.frozen_b)
        assert lora_a[:, d_a:].abs().max() > 0.1


def test_a_shuffled_frame_freezes_rows_and_columns_by_lot(unet):
    frame, blocks = make_frame(unet, order="shuffled"), make_frame(unet)
    moved = [frame.places(name)[0].tolist() != sorted(frame.places(name)[0].tolist()) for name in frame.layers]
    assert sum(moved) > len(moved) / 2
    for name, (m, n) in frame.layers.items():
        rows, columns = frame.places(name)
        assert rows.sort().values.tolist() == list(range(m)) and columns.sort().values.tolist() == list(range(n))
        assert torch.equal(rows, frame.places(name)[0]) and torch.equal(columns, frame.places(name)[1])
        assert [own.tolist() for own in blocks.places(name)] == [list(range(m)), list(range(n))]
        assert torch.equal(frame.blocks(name).frozen_a, blocks.blocks(name).frozen_a)


@pytest.mark.parametrize("order", ["blocks", "shuffled"])
def test_orthogonal_halves_never_meet(unet, order):
    layers = plp.inject(unet, frame := make_frame(unet, order=order), "orthogonal")
    randomise(layers)
    for name, layer in layers.items():
        (lora_a, lora_b), (d_b, d_a), (rows, columns) = layer.factors(), frame.sizes(name), frame.places(name)
        lora_a, lora_b = lora_a[:, columns], lora_b[rows]
        assert (lora_b[d_b:] @ lora_a[:, d_a:]).norm() <= 1e-5  # L_B L_A
        assert (lora_b[:d_b] @ lora_a[:, d_a:]).norm() > 0.1  # F_B L_A: lora_A's concept
        assert (lora_b[d_b:] @ lora_a[:, :d_a]).norm() > 0.1  # L_B F_A: lora_B's concept


@pytest.mark.parametrize("halves", ["orthogonal", "free"])
def test_pictures_of_one_pass_can_teach_a_factor_each(unet, halves):
    """Each factor's gradient is that of its own pictures alone, and nothing of what the layers give changes."""
    layers = plp.inject(unet, make_frame(unet), halves)
    randomise(layers)
    sides = {"lora_B": [layer.b for layer in layers.values()], "lora_A": [layer.a for layer in layers.values()]}
    whole = [parameter for side in sides.values() for parameter in side]
    given = forward(unet)
    plp.teach_apart(layers, ("lora_B", "lora_A"), [1, len(given) - 1])
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
    plp.teach_apart(layers, ("lora_B", "lora_A"), [2, 3])
    with torch.no_grad():
        assert torch.allclose(forward(unet), given, atol=1e-6)
    with pytest.raises(ValueError, match="batch of 5, this one has 2"):
        forward(unet)


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
    [
        {"seed": 1},
        {"rank": 2},
        {"alpha": 8.0},
        {"split": 0.25},
        {"init": "paper"},
        {"scale": 2.0},
        {"base_model": "x"},
        {"order": "shuffled"},
    ],
)
def test_fingerprint_knows_every_part(unet, change):
    assert make_frame(unet).fingerprint != make_frame(unet, **change).fingerprint


def test_frame_scale_multiplies_the_frozen_blocks(unet):
    name = next(iter(make_frame(unet).layers))
    once, thrice = make_frame(unet).blocks(name), make_frame(unet, scale=3.0).blocks(name)
    assert torch.allclose(thrice.frozen_a, 3 * once.frozen_a) and torch.allclose(thrice.frozen_b, 3 * once.frozen_b)


def export_half(unet_folder, side, seed, halves="orthogonal", **changes):
    unet = UNet2DConditionModel.from_pretrained(unet_folder, subfolder="unet")
    frame = make_frame(unet, **changes)
    layers = plp.inject(unet, frame, halves)
    randomise(layers, seed)
    return plp.export(layers, frame, METADATA, only=side)


@pytest.mark.parametrize("order", ["blocks", "shuffled"])
def test_reconstruction_is_the_plain_sum_of_two_orthogonal_halves(tiny_sdxl, order):
    half_a, half_b = (export_half(tiny_sdxl, side, seed, order=order) for side, seed in (("lora_A", 1), ("lora_B", 2)))
    joined = plp.reconstruct(half_a, half_b, METADATA)
    for name in joined.modules():
        assert torch.equal(joined.tensors[f"{name}.lora_A.weight"], half_a.tensors[f"{name}.lora_A.weight"])
        assert torch.equal(joined.tensors[f"{name}.lora_B.weight"], half_b.tensors[f"{name}.lora_B.weight"])
        assert torch.allclose(joined.delta(name), half_a.delta(name) + half_b.delta(name), atol=1e-5)


def test_halves_of_two_frames_are_refused_by_both_names(tiny_sdxl):
    half_a, half_b = export_half(tiny_sdxl, "lora_A", 1), export_half(tiny_sdxl, "lora_B", 1, scale=2.0)
    with pytest.raises(plp.FrameMismatchError) as error:
        plp.reconstruct(half_a, half_b, METADATA)
    assert half_a.metadata["frame"] in str(error.value) and half_b.metadata["frame"] in str(error.value)


def test_the_same_half_twice_is_refused(tiny_sdxl):
    half = export_half(tiny_sdxl, "lora_A", 1)
    with pytest.raises(plp.FrameMismatchError, match="half of lora_A"):
        plp.reconstruct(half, half, METADATA)


@pytest.mark.parametrize("order", ["blocks", "shuffled"])
def test_loading_halves_brings_the_adapter_back(tiny_sdxl, unet, order):
    half_a, half_b = (export_half(tiny_sdxl, side, seed, order=order) for side, seed in (("lora_A", 1), ("lora_B", 2)))
    joined = plp.reconstruct(half_a, half_b, METADATA)
    frame = make_frame(unet, order=order)
    layers = plp.inject(unet, frame, "free")
    plp.load_halves(layers, joined, frame)
    again = plp.export(layers, frame, METADATA)
    assert all(torch.equal(again.tensors[key], joined.tensors[key]) for key in joined.tensors)
    with pytest.raises(plp.FrameMismatchError):
        plp.load_halves(layers, joined, dataclasses.replace(frame, seed=9))


def test_frame_can_be_rebuilt_from_an_adapter(tiny_sdxl):
    half = export_half(tiny_sdxl, "lora_A", 1)
    assert plp.frame_of(half).fingerprint == half.metadata["frame"]
    moved = copy.deepcopy(half)
    moved.metadata["frame"] = "0" * 16
    with pytest.raises(plp.FrameMismatchError):
        plp.frame_of(moved)


@pytest.mark.parametrize("alpha", [4.0, 2.0])
def test_a_stock_pipeline_draws_what_the_training_model_draws(tiny_sdxl, unet, tmp_path, alpha):
    frame = make_frame(unet, alpha=alpha)
    layers = plp.inject(unet, frame, "free")
    randomise(layers)
    save_adapter(plp.export(layers, frame, METADATA), tmp_path)
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


def test_wrong_targets_and_ranks_are_named(unet):
    with pytest.raises(plp.TargetError, match="to_quack"):
        plp.find_layers(unet, ["to_q", "to_quack"])
    with pytest.raises(plp.TargetError, match=r"rank must be <= min\(in, out\) = 16, got 64 for "):
        make_frame(unet, rank=64, layers={"mid.to_q": (16, 24)})


@pytest.mark.parametrize("init", ["exact", "paper"])
@pytest.mark.parametrize("halves", ["orthogonal", "free"])
@pytest.mark.parametrize("order", ["blocks", "shuffled"])
def test_a_layer_does_what_its_factors_say(unet, halves, init, order):
    """The pass of a layer goes its own ways; forward and gradients are those of lora_B lora_A."""
    layers = plp.inject(unet, make_frame(unet, init=init, alpha=6.0, scale=2.0, order=order), halves)
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
