"""FLUX.2 klein; what it shares with others is in test_flows.py."""

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from b4m_pipeline.diffusion.families import load_family


def test_latents_are_patches_normalised_by_the_vaes_statistics(tiny_flow) -> None:
    family = load_family(tiny_flow("flux2"))
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    ((mean, deviation),) = family.encode_pictures([picture])
    pipeline = Flux2KleinPipeline.from_pretrained(family.params.path)
    image = pipeline.image_processor.preprocess(picture, height=32, width=32)
    with torch.no_grad():
        (stock,) = pipeline._encode_vae_image(image, generator=None)
    assert mean.shape == (16, 4, 4) and torch.allclose(mean, stock, atol=1e-5) and not deviation.any()
    assert family.vae_factor() == family.side_multiple() == 8


def test_the_chat_around_a_prompt_counts_too(tiny_flow) -> None:
    family = load_family(tiny_flow("flux2"))
    tokenizer = family.load_tokenizer()
    assert family.prompt_tokens(tokenizer, "a cat") > len(tokenizer("a cat")["input_ids"]) + 5
    assert family.token_limit(tokenizer) == 512


def test_the_shift_grows_with_the_picture(tiny_flow) -> None:
    family = load_family(tiny_flow("flux2"))
    assert family.timestep_shift((256, 256)) > family.timestep_shift((32, 32)) > 1
    assert family.timestep_shift() == pytest.approx(family.timestep_shift((32, 32)))
