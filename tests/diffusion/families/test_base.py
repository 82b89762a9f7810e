"""What all base-model families share, against diffusers' own pipelines."""

import weakref

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from b4m_pipeline.common.hub import HubError
from b4m_pipeline.diffusion.families import BaseModelError, load_family
from b4m_pipeline.diffusion.params import BaseModelParams


def test_pictures_become_mean_and_deviation_of_scaled_latents(tiny_base):
    pictures = [Image.effect_noise((32, 32), 80).convert("RGB") for _ in range(3)]
    encoded = load_family(tiny_base).encode_pictures(pictures, batch_size=2)
    mean, deviation = (torch.stack(part) for part in zip(*encoded, strict=True))
    vae = AutoencoderKL.from_pretrained(tiny_base.path, subfolder="vae")
    image = StableDiffusionXLPipeline.from_pretrained(tiny_base.path).image_processor.preprocess(pictures[2])
    posterior = vae.encode(image).latent_dist
    assert torch.allclose(mean[2], posterior.mean[0] * vae.config.scaling_factor, atol=1e-5)
    assert torch.allclose(deviation[2], posterior.std[0] * vae.config.scaling_factor, atol=1e-5)


def test_what_is_not_there_is_named(tmp_path, monkeypatch, tiny_sdxl):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    with pytest.raises(BaseModelError, match="has no model_index.json"):
        load_family(BaseModelParams(path=str(tmp_path)))
    with pytest.raises(HubError, match="'nobody/nothing'"):
        load_family(BaseModelParams(path="nobody/nothing"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "LuminaPipeline"}')
    with pytest.raises(BaseModelError, match="is a LuminaPipeline; supported are"):
        load_family(BaseModelParams(path=str(tmp_path)))


def test_pickled_weights_are_not_read(tiny_sdxl, tmp_path):
    import shutil

    copied = tmp_path / "pickled"
    shutil.copytree(tiny_sdxl, copied)
    (weights,) = (copied / "unet").glob("*.safetensors")
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(BaseModelError, match="no usable unet"):
        load_family(BaseModelParams(path=str(copied))).load_denoiser()


def test_a_vae_of_the_hub_can_be_pinned(tiny_base, monkeypatch):
    asked = []
    config = AutoencoderKL.load_config(tiny_base.path, subfolder="vae")
    monkeypatch.setattr("b4m_pipeline.diffusion.families.base.require_model", lambda *_: None)
    monkeypatch.setattr(AutoencoderKL, "load_config", lambda source, **options: asked.append((source, options)) or config)
    for vae in ("some/vae", "some/vae@0123abc"):
        load_family(tiny_base.model_copy(update={"vae": vae})).check_parts()
    assert asked == [("some/vae", {}), ("some/vae", {"revision": "0123abc"})]


@pytest.fixture
def halved(tiny_flow, tiny_sdxl, tmp_path):
    """Name -> the tiny model with files in bfloat16, and the same weights in float32."""

    def make(name: str) -> tuple[BaseModelParams, BaseModelParams]:
        folder = tiny_sdxl if name == "sdxl" else tiny_flow(name).path
        pipeline = DiffusionPipeline.from_pretrained(folder).to(torch.bfloat16)
        pipeline.save_pretrained(tmp_path / f"{name}-bf16")
        pipeline.to(torch.float32).save_pretrained(tmp_path / f"{name}-fp32")
        return tuple(BaseModelParams(path=str(tmp_path / f"{name}-{kind}"), resolution=32) for kind in ("bf16", "fp32"))

    return make


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_large_encoders_keep_half_precision_and_what_they_say_is_float32(name, halved, monkeypatch) -> None:
    half, whole = (load_family(params) for params in halved(name))
    used, prompts = [], ["a cat", "a snq toy in w@z style"]
    for family in (half, whole):
        load = family._text_pipeline
        monkeypatch.setattr(family, "_text_pipeline", lambda device, load=load: used.append(load(device)) or used[-1])
    monkeypatch.setattr("b4m_pipeline.common.devices.has_fast_bf16", lambda device: False)
    small = half.encode_prompts(prompts)
    monkeypatch.setattr("b4m_pipeline.common.devices.LARGE", 0)
    large, expected = half.encode_prompts(prompts), whole.encode_prompts(prompts)
    assert [pipeline.text_encoder.dtype for pipeline in used] == [torch.float32, torch.bfloat16, torch.float32]
    for key, value in expected.items():
        assert torch.equal(small[key], value)
        assert large[key].dtype is torch.float32 and not torch.equal(large[key], value) or key == "prompt_mask"
        assert (large[key] - value).norm() < 0.05 * value.norm()
    assert all(tensor.dtype is torch.float32 for values in half.encode_guided(prompts).values() for tensor in values)


def test_encoders_are_gone_once_prompts_are_encoded(tiny_base, monkeypatch) -> None:
    family, seen = load_family(tiny_base), []
    load = family._text_pipeline

    def watched(device: str):
        pipeline = load(device)
        seen.append(weakref.ref(pipeline.text_encoder))
        return pipeline

    monkeypatch.setattr(family, "_text_pipeline", watched)
    family.encode_prompts(["a cat"])
    family.encode_guided(["a cat"])
    assert len(seen) == 2 and not any(reference() for reference in seen)


@pytest.mark.parametrize("name", ["sdxl", "z_image"])
def test_a_large_model_is_drawn_with_in_half_precision_on_a_cpu(name, halved, monkeypatch) -> None:
    half, whole = (load_family(params) for params in halved(name))
    asked = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}

    def drawn(pipeline) -> np.ndarray:
        assert {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)} == {pipeline.dtype}
        return pipeline(prompt=["a cat"], generator=torch.Generator().manual_seed(0), **asked).images[0]

    small = half.load_pipeline()
    assert small.dtype is torch.float32
    monkeypatch.setattr("b4m_pipeline.common.devices.LARGE", 0)
    large, expected = half.load_pipeline(), whole.load_pipeline()
    assert (large.dtype, expected.dtype) == (torch.bfloat16, torch.float32)
    assert np.abs(drawn(large) - drawn(expected)).mean() < 0.02 and np.array_equal(drawn(small), drawn(expected))
