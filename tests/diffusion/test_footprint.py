"""Memory from configurations alone, against what is really held."""

import pytest
import torch

from b4m_pipeline.diffusion.families import base_model_id, load_family
from b4m_pipeline.diffusion.families.quantized import BYTES
from b4m_pipeline.diffusion.footprint import Live, activations, denoiser_bytes, drawing, encoder_bytes, vae_bytes
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.frame import Frame
from b4m_pipeline.method.layers import inject
from tests.test_startup import ROOT
from tests.tiny_models import TARGETS

EMBEDDED = BaseModelParams(path=str(ROOT / "data/06_models/embedded_base"), resolution=128)
BATCH, RANK = 4, 4


def test_tensors_count_while_they_are_there_and_views_with_what_they_show() -> None:
    before = torch.zeros(1000)
    with Live() as live:
        before.view(10, 100)
        first = torch.zeros(100)  # 400 bytes
        second = first.view(10, 10)[0] + 1  # 40
        del first
        third = torch.zeros(50)  # 200
    assert (live.peak, live.now) == (440, 240) and len(second) + len(third) == 60


def measured(base: BaseModelParams, targets: list[str], checkpointed: bool) -> int:
    """The most bytes that tensors held in a training step of halves on the real model, on a CPU."""
    family = load_family(base)
    denoiser = family.load_denoiser().eval()
    layers = family.find_layers(denoiser, targets)
    inject(denoiser, Frame(0, RANK, RANK, 0.5, "exact", 1.0, base_model_id(base), layers), "orthogonal")
    if checkpointed:
        denoiser.enable_gradient_checkpointing()
    prompts = {key: torch.ones(value.shape) for key, value in family.blank_prompts(BATCH).items()}
    side = base.resolution // family.vae_factor()
    latents = torch.randn(BATCH, family.latent_channels(), side, side)
    with Live() as live:
        loss = family.predict(denoiser, latents, torch.full((BATCH,), 500.0), prompts).square().mean()
        loss.backward()
    return live.peak


def estimate(base: BaseModelParams, targets: list[str], checkpointed: bool, batch: int = BATCH) -> int:
    return activations(base, tuple(targets), RANK, batch, torch.float32, "cpu", checkpointed)


CASES = {"sdxl": ["to_q", "to_k", "to_v", "to_out.0"]} | {name: TARGETS[name] for name in ("z_image", "qwen_image")}


@pytest.mark.parametrize("name", CASES)
def test_activations_are_those_of_a_real_step(name, tiny_flow, tiny_base) -> None:
    base = tiny_base if name == "sdxl" else tiny_flow(name)
    kept, fewer = (estimate(base, CASES[name], checkpointed) for checkpointed in (False, True))
    assert fewer < kept
    assert 0.6 < kept / measured(base, CASES[name], False) < 1.7
    assert 0.6 < fewer / measured(base, CASES[name], True) < 1.7


def test_activations_are_those_of_a_real_step_of_the_embedded_base() -> None:
    targets = ["attn2.to_k", "attn2.to_v", "add_embedding.linear_2"]
    kept = estimate(EMBEDDED, targets, False)
    assert 0.8 < kept / measured(EMBEDDED, targets, False) < 1.25
    assert 0.8 < estimate(EMBEDDED, targets, True) / measured(EMBEDDED, targets, True) < 1.25
    assert estimate(EMBEDDED, targets, False, 2 * BATCH) == pytest.approx(2 * kept, rel=0.1)


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@pytest.mark.parametrize("name", ["sdxl", "flux2"])
def test_weights_are_those_of_the_loaded_model(name, tiny_flow, tiny_base) -> None:
    base = tiny_base if name == "sdxl" else tiny_flow(name)
    pipeline = load_family(base).load_pipeline()
    encoders = [part for key, part in pipeline.components.items() if key.startswith("text_encoder")]
    denoiser = load_family(base).load_denoiser()
    assert denoiser_bytes(base, torch.float32) == weight_bytes(denoiser) == 2 * denoiser_bytes(base, torch.bfloat16)
    assert list(encoder_bytes(base, "cpu")) == [weight_bytes(part) for part in encoders]
    drawn = drawing(base, 1, "cpu")
    assert drawn.parts == (*map(weight_bytes, encoders), weight_bytes(denoiser), weight_bytes(pipeline.vae))
    assert drawn.total("group") < drawn.total("model") < drawn.total(None)
    assert drawing(base, 4, "cpu").working > 2 * drawn.working


@pytest.mark.parametrize("kind", BYTES)
def test_quantised_weights_are_as_large_as_said(kind, tiny_flow, monkeypatch) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny_flow("flux2").model_copy(update={"quantization": kind})
    monkeypatch.setattr("b4m_pipeline.common.devices.LARGE", 0)
    encoder_bytes.cache_clear()
    pipeline = load_family(base).load_pipeline()
    (encoder,) = encoder_bytes(base, "cpu")
    encoder_bytes.cache_clear()
    for said, part in ((denoiser_bytes(base, torch.float32), pipeline.transformer), (encoder, pipeline.text_encoder)):
        states = [
            module.weight.quant_state for module in part.modules() if hasattr(getattr(module, "weight", 0), "quant_state")
        ]
        scales = sum(state.absmax.numel() * state.absmax.element_size() for state in states)
        assert said == pytest.approx(weight_bytes(part) + scales, rel=0.05)


def test_a_model_that_is_not_on_this_machine_is_taken_for_one_of_bfloat16(tiny_flow, monkeypatch) -> None:
    base = tiny_flow("flux2")
    monkeypatch.setattr("b4m_pipeline.diffusion.families.source.Source.stored", lambda self, part: None)
    encoder_bytes.cache_clear()
    own = sum(weight.numel() for weight in load_family(base).source.empty_encoder("text_encoder").parameters())
    assert encoder_bytes(base, "cuda") == (2 * own,)
    encoder_bytes.cache_clear()


def test_decoding_grows_with_the_images(tiny_base) -> None:
    family = load_family(tiny_base)
    vae = family.empty_vae()
    one, four = (vae_bytes(family, vae.decoder, count, torch.float32, decoding=True) for count in (1, 4))
    assert four == 4 * one
    larger = load_family(tiny_base.model_copy(update={"resolution": 64}))
    assert vae_bytes(larger, vae.decoder, 1, torch.float32, decoding=True) == 4 * one
