"""Stable Diffusion 3 and 3.5; what it shares with others is in test_flows.py."""

import torch
from PIL import Image

from b4m_pipeline.diffusion.families import StableDiffusion3, load_family


def test_pictures_are_shifted_and_scaled_as_the_vae_says(tiny_flow) -> None:
    family = load_family(tiny_flow("sd3"))
    assert isinstance(family, StableDiffusion3) and family.side_multiple() == 8
    picture = Image.effect_noise((32, 16), 80).convert("RGB")
    ((mean, deviation),) = family.encode_pictures([picture])
    vae = family.load_vae()
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(16, 32, 3).permute(2, 0, 1)
    posterior = vae.encode(pixels[None] / 127.5 - 1).latent_dist
    assert torch.allclose(mean, 1.5 * (posterior.mean[0] - 0.1), atol=1e-5)
    assert torch.allclose(deviation, 1.5 * posterior.std[0], atol=1e-5)


def test_two_clips_and_t5_stand_side_by_side(tiny_flow) -> None:
    encoded = load_family(tiny_flow("sd3")).encode_prompts(["a cat", "a dog"])
    embeds, clip = encoded["prompt_embeds"], 24
    assert embeds.shape == (2, clip + 256, 32) and encoded["pooled_prompt_embeds"].shape == (2, 16 + 16)
    assert not embeds[:, :clip, 16:].any() and embeds[:, clip:, 16:].any()  # CLIP's numbers are filled up to T5's
