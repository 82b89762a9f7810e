"""What all base-model families share, against diffusers' own pipelines."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
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
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(BaseModelError, match="is a FluxPipeline; supported are"):
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
    monkeypatch.setattr("b4m_pipeline.diffusion.families.base.require_model", lambda *_: None)
    monkeypatch.setattr(AutoencoderKL, "load_config", lambda source, **options: asked.append((source, options)))
    for vae in ("some/vae", "some/vae@0123abc"):
        load_family(tiny_base.model_copy(update={"vae": vae})).check_parts()
    assert asked == [("some/vae", {}), ("some/vae", {"revision": "0123abc"})]
