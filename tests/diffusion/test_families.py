"""Base-model families against diffusers' own pipelines."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image

from b4m_pipeline.diffusion.families import BaseModelError, base_model_id, load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from tests.conftest import train_half


def test_sdxl_prompts_are_encoded_as_the_pipeline_does(tiny_base):
    family = load_family(tiny_base)
    encoded = family.encode_prompts(["a cat", "a snq toy"], batch_size=1)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base.path)
    embeds, _, pooled, _ = pipeline.encode_prompt(["a cat", "a snq toy"], do_classifier_free_guidance=False)
    assert torch.allclose(encoded["prompt_embeds"], embeds) and torch.allclose(encoded["pooled_prompt_embeds"], pooled)
    assert not torch.allclose(embeds[0], embeds[1])


def test_pictures_become_mean_and_deviation_of_scaled_latents(tiny_base):
    pictures = [Image.effect_noise((32, 32), 80).convert("RGB") for _ in range(3)]
    encoded = load_family(tiny_base).encode_pictures(pictures, batch_size=2)
    mean, deviation = (torch.stack(part) for part in zip(*encoded, strict=True))
    vae = AutoencoderKL.from_pretrained(tiny_base.path, subfolder="vae")
    image = StableDiffusionXLPipeline.from_pretrained(tiny_base.path).image_processor.preprocess(pictures[2])
    posterior = vae.encode(image).latent_dist
    assert torch.allclose(mean[2], posterior.mean[0] * vae.config.scaling_factor, atol=1e-5)
    assert torch.allclose(deviation[2], posterior.std[0] * vae.config.scaling_factor, atol=1e-5)


def test_gradient_checkpointing_changes_memory_and_nothing_else(tiny_base, tiny_training_set):
    from b4m_pipeline.training.params import BreakParams
    from tests.training.test_stages import BREAK, CONTENT, frame

    def train(**changes):
        params = BreakParams(**BREAK | changes)
        return train_half("content", tiny_training_set, tiny_base, frame(), CONTENT, params, 0)[0]

    plain, sparing = train(), train(gradient_checkpointing=True)
    for key, tensor in plain.tensors.items():
        assert torch.allclose(tensor, sparing.tensors[key], atol=1e-5)


def test_what_is_not_there_is_named(tmp_path, monkeypatch, tiny_sdxl):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    with pytest.raises(BaseModelError, match="has no model_index.json"):
        load_family(BaseModelParams(path=str(tmp_path)))
    with pytest.raises(BaseModelError, match="'nobody/nothing'"):
        load_family(BaseModelParams(path="nobody/nothing"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(BaseModelError, match="is a FluxPipeline; supported are"):
        load_family(BaseModelParams(path=str(tmp_path)))


def test_identity_is_of_the_weights_not_of_the_place(tiny_sdxl, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copied = tmp_path / tiny_sdxl.name
    shutil.copytree(tiny_sdxl, copied)
    first, second = (base_model_id(BaseModelParams(path=str(path))) for path in (tiny_sdxl, copied))
    assert first == second
    (weights,) = (copied / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1
    save_file(tensors, weights)
    assert base_model_id(BaseModelParams(path=str(copied))) != first


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
    monkeypatch.setattr(AutoencoderKL, "load_config", lambda source, **options: asked.append((source, options)))
    for vae in ("some/vae", "some/vae@0123abc"):
        load_family(tiny_base.model_copy(update={"vae": vae})).check_parts()
    assert asked == [("some/vae", {}), ("some/vae", {"revision": "0123abc"})]
