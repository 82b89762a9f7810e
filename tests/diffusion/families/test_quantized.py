"""Halves on a base model whose weights are held in 8 or 4 bits, through all stages and out again."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from b4m_pipeline.diffusion.families import BaseModelError, QuantizationError, encoder_id, load_family
from b4m_pipeline.diffusion.families.quantized import check_quantization
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.diffusion.sampling import generate
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import TargetError, frame_of
from b4m_pipeline.method.layers import find_layers, load_halves, route_gradients
from b4m_pipeline.training.params import BreakParams, MakeParams, ZipParams
from b4m_pipeline.training.setup import check_targets, make_frame, set_up
from b4m_pipeline.training.stages import BreakStage
from b4m_pipeline.training.zip_lora import zip_lora
from tests.conftest import train_half, train_make
from tests.tiny_models import SIDE, TARGETS
from tests.training.helpers import BREAK, CONTENT, MAKE, STYLE, frame

PROMPT = "a snq toy in w@z style"
OTHERS = [f"a {content} toy in {style} style" for content in ("dog", "big red car") for style in ("oil", "ink")]
WORDS = {"template": "a {content} in {style} style", "contents": ["dog", "car", "cup"], "styles": ["oil", "pixel art"]}
CLASSES = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}
bases = pytest.mark.parametrize("name", ["z_image", "sdxl"])


class Quantized:
    """A base model with quantised weights, and what a break sets up on it."""

    def __init__(self, base: BaseModelParams, manifest, targets: list[str]):
        self.base, self.family = base, load_family(base)
        self.data = encode_training_set(*manifest, base, OTHERS)
        self.frame = frame(targets=targets, basis="words", words=WORDS)
        self.params = BreakParams(**BREAK | {"preservation_weight": 0.1, "learning_rate": 0.1})

    def set_up(self, halves="orthogonal"):
        return set_up(self.data, self.base, self.frame, self.params, halves, 0, (self.data.other_tensors, 0.1))

    def half(self, kind: str, **io) -> Adapter:
        concept = CONTENT if kind == "content" else STYLE
        return train_half(kind, self.data, self.base, self.frame, concept, self.params, 0, **io)[0]


@pytest.fixture(scope="module")
def quantized(tiny_flow, tiny_base, tiny_manifest):
    """Name of a tiny model -> Quantized: Z-Image in 4 bits, SDXL in 8."""
    pytest.importorskip("bitsandbytes")
    made: dict[str, Quantized] = {}

    def get(name: str) -> Quantized:
        if name not in made:
            own = {"z_image": lambda: tiny_flow("z_image"), "sdxl": lambda: tiny_base}[name]()
            base = own.model_copy(update={"quantization": "nf4" if name == "z_image" else "int8"})
            targets = TARGETS["z_image"] if name == "z_image" else ["to_q", "attn2.to_k", "attn2.to_v", "to_out.0"]
            made[name] = Quantized(base, tiny_manifest, targets)
        return made[name]

    return get


@bases
def test_linear_layers_of_the_blocks_are_quantised_and_no_others(name, quantized) -> None:
    own = quantized(name)
    denoiser = own.family.load_denoiser()
    classes = {key: type(module).__name__ for key, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)}
    for layer, kind in classes.items():
        inside = layer.startswith(("down_blocks", "mid_block", "up_blocks", "layers", "noise_refiner", "context_refiner"))
        assert kind == (CLASSES[own.base.quantization] if inside else "Linear"), layer
    assert denoiser.dtype is torch.float32 and not any(weight.requires_grad for weight in denoiser.parameters())
    assert find_layers(denoiser, own.frame.targets) == find_layers(own.family.empty_denoiser(), own.frame.targets)
    plain = load_family(own.base.model_copy(update={"quantization": None})).load_denoiser()
    ours, theirs = (part.get_submodule(next(iter(own.set_up().layers))) for part in (denoiser, plain))
    x = torch.randn(5, theirs.in_features)
    assert 0 < (ours(x) - theirs(x)).norm() < 0.2 * theirs(x).norm()


@bases
def test_the_methods_promises_hold(name, quantized) -> None:
    own = quantized(name)
    rows = torch.tensor([0, 3])

    def predicted(loss) -> torch.Tensor:
        with torch.no_grad():
            return loss.predict(rows, torch.Generator().manual_seed(0))[0]

    setup = own.set_up()
    adapted = predicted(setup.loss)
    for layer in setup.layers.values():
        layer.module.enable_adapters(False)
    assert (adapted - predicted(setup.loss)).abs().max() <= 1e-6  # step 0
    for layer in setup.layers.values():
        layer.module.enable_adapters(True)
        assert (layer.factors()[1] @ layer.factors()[0]).norm() <= 1e-5
    route_gradients(setup.layers, ("lora_A", "lora_B"), [1, 1])
    losses = setup.loss.joint_loss([(rows[:1], torch.Generator()), (rows[1:], torch.Generator())])
    for loss, side, other in zip(losses, ("lora_A", "lora_B"), ("lora_B", "lora_A"), strict=True):
        gradients = torch.autograd.grad(loss, setup.side(side) + setup.side(other), retain_graph=True, allow_unused=True)
        count = len(setup.layers)
        assert any(gradient is not None and gradient.any() for gradient in gradients[:count])
        assert not any(gradient is not None and gradient.any() for gradient in gradients[count:])


@bases
def test_preservation_measures_the_quantised_layers_own_output(name, quantized) -> None:
    setup = quantized(name).set_up()
    preservation = setup.preservation
    denoiser = setup.loss.family.load_denoiser()  # the base model alone
    inputs = setup.loss.family.prompt_inputs(denoiser, quantized(name).data.other_tensors)
    for layer, own in zip(preservation.layers, preservation.moments, strict=True):
        rows = inputs[layer.name].flatten(0, -2)
        said = layer.module.get_base_layer()(rows[rows.any(1)])
        assert own.output_variance == pytest.approx(float((said - said.mean(0)).square().sum(1).mean()), rel=0.02)


@bases
def test_all_stages_train_and_draw_in_a_stock_pipeline(name, quantized, tmp_path) -> None:
    own = quantized(name)
    halves = [own.half(kind) for kind in ("content", "style")]
    for half, learnt in zip(halves, ("lora_A", "lora_B"), strict=True):
        own_frame = frame_of(half)
        assert half.metadata["base_quantization"] == own.base.quantization
        assert json.loads(half.metadata["params"])["quantization"] == own.base.quantization
        for module in half.modules():
            frozen, (d_b, d_a) = own_frame.blocks(module), own_frame.sizes(module)
            if learnt == "lora_B":
                assert frozen.rest is not None or torch.equal(half.tensors[f"{module}.lora_A.weight"][:, :d_a], frozen.frozen_a)
            assert torch.equal(half.tensors[f"{module}.lora_B.weight"][:d_b], frozen.frozen_b)
    joined = join_halves(*halves, own.frame.content_side)
    made, _ = train_make(joined, own.data, own.base, own.frame, MakeParams(**MAKE | {"gradient_checkpointing": True}), 0)
    assert made.metadata["base_quantization"] == own.base.quantization
    ours = trained_image(own, made)
    pipeline = own.family.load_pipeline()
    pipeline.load_lora_weights(save_adapter(made, tmp_path).parent)
    stock = pipeline(prompt=[PROMPT], **DRAWN, generator=torch.Generator().manual_seed(0)).images[0]
    asked = GenerateParams(adapter="x", prompts=[PROMPT], images_per_prompt=1, steps=2, guidance_scale=1.0)
    (image,) = generate(made, own.base, asked, 0).values()
    assert np.abs(ours - stock).max() < 1e-4 and np.abs(np.asarray(image) / 255 - stock).max() < 3e-3
    (plain,) = generate(None, own.base, asked.model_copy(update={"adapter": None}), 0).values()
    assert np.abs(np.asarray(plain, int) - np.asarray(image, int)).max() > 1


DRAWN = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": SIDE, "width": SIDE, "output_type": "np"}


def trained_image(own: Quantized, adapter: Adapter) -> np.ndarray:
    """An image by the layers that are trained, with an adapter's halves in them."""
    setup = own.set_up("free")
    load_halves(setup.layers, adapter, setup.frame)
    pipeline = own.family.drawing_pipeline(setup.loss.denoiser)
    encoded = own.family.encode_guided([PROMPT])
    return pipeline(**encoded, **DRAWN, generator=torch.Generator().manual_seed(0)).images[0]


def test_a_break_that_was_stopped_goes_on_to_the_same_weights(quantized, tmp_path) -> None:
    own, whole = quantized("z_image"), quantized("z_image").half("content")

    def stop(entry, step):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.half("content", checkpoint=tmp_path / "x.safetensors", log=stop)
    resumed = own.half("content", checkpoint=tmp_path / "x.safetensors")
    assert all(torch.equal(resumed.tensors[key], tensor) for key, tensor in whole.tensors.items())


def test_large_encoders_are_quantised_too(quantized, monkeypatch) -> None:
    own, used = quantized("z_image"), []
    before = own.family.encode_prompts([PROMPT])["prompt_embeds"]
    monkeypatch.setattr("b4m_pipeline.common.devices.LARGE", 0)
    load = own.family._text_pipeline
    monkeypatch.setattr(own.family, "_text_pipeline", lambda device: used.append(load(device)) or used[-1])
    after = own.family.encode_prompts([PROMPT])["prompt_embeds"]
    (pipeline,) = used
    assert type(pipeline.text_encoder.layers[0].mlp.up_proj).__name__ == "Linear4bit" and after.dtype is torch.float32
    assert 0 < (after - before).norm() < 0.5 * before.norm()
    assert type(own.family.load_pipeline().text_encoder.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_it_is_part_of_the_recipe_and_not_of_the_frame(tiny_base, tiny_training_set) -> None:
    """Halves on one and the same model can be joined, however it was held; neither passes for the other."""
    other = tiny_base.model_copy(update={"quantization": "nf4"})
    digests = [load_family(base).encoder_digest() for base in (tiny_base, other)]
    assert len(set(digests)) == 2
    assert make_frame(tiny_base, frame()).fingerprint == make_frame(other, frame()).fingerprint
    recipes = []
    for base in (tiny_base, other):
        data = dataclasses.replace(tiny_training_set, encoder=encoder_id(base))
        recipes.append(BreakStage("content", data, base, frame(), CONTENT, BreakParams(**BREAK), 0).recipe)
    assert recipes[0].digest != recipes[1].digest
    assert recipes[1].differences(recipes[0].metadata() | {"frame": recipes[0].frame}) == [
        "pictures or captions changed",
        "quantization unset -> nf4",
    ]  # the encoders that read them are held otherwise


def test_a_missing_package_is_named_before_anything_is_loaded(tiny_base, monkeypatch) -> None:
    monkeypatch.setattr("b4m_pipeline.diffusion.families.quantized.find_spec", lambda name: None)
    check_quantization(None)
    base = tiny_base.model_copy(update={"quantization": "int8"})
    for load in (lambda: check_targets(base, frame()), load_family(base).load_denoiser, load_family(base).load_pipeline):
        with pytest.raises(QuantizationError, match=r"quantization is int8, which needs.*pip install bitsandbytes"):
            load()


def test_layers_that_are_no_linear_layers_any_more_are_refused_by_name() -> None:
    class PackedLinear(torch.nn.Module):
        pass

    model = torch.nn.ModuleDict({"to_q": torch.nn.Linear(4, 4), "block": torch.nn.ModuleDict({"to_q": PackedLinear()})})
    with pytest.raises(TargetError, match=r"^block\.to_q is a PackedLinear"):
        find_layers(model, ["to_q"])
    assert find_layers(torch.nn.ModuleDict({"to_k": PackedLinear(), "to_q": torch.nn.Linear(4, 4)}), ["to_q"]) == {
        "to_q": (4, 4)
    }


def test_weights_that_are_quantised_in_their_files_are_refused(tiny_sdxl, tmp_path) -> None:
    DiffusionPipeline.from_pretrained(tiny_sdxl).save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(BaseModelError, match=r"quantised already \(bitsandbytes\).*base_model\.quantization"):
        check_targets(BaseModelParams(path=str(tmp_path), resolution=32), frame())


def test_zip_lora_which_changes_weights_is_refused(tiny_base, tiny_training_set, tiny_halves) -> None:
    for changes in ({"quantization": "nf4"}, {"path": "own.gguf"}):
        with pytest.raises(QuantizationError, match="with which ZipLoRA cannot work"):
            zip_lora(*tiny_halves, tiny_training_set, tiny_base.model_copy(update=changes), MakeParams(**MAKE), ZipParams(), 0)
