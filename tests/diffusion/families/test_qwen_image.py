"""Qwen-Image; what it shares with others is in test_flows.py."""

import torch
from PIL import Image

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.families.prompts import pad_prompts


def test_every_channel_of_the_latents_has_its_mean_and_deviation(tiny_flow) -> None:
    family = load_family(tiny_flow("qwen_image"))
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    ((mean, deviation),) = family.encode_pictures([picture])
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(32, 32, 3).permute(2, 0, 1)
    with torch.no_grad():
        posterior = family.load_vae().encode((pixels / 127.5 - 1)[None, :, None]).latent_dist
    for channel, (centre, spread) in enumerate([(-0.5, 0.5), (0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]):
        assert torch.allclose(mean[channel], (posterior.mean[0, channel, 0] - centre) / spread, atol=1e-5)
        assert torch.allclose(deviation[channel], posterior.std[0, channel, 0] / spread, atol=1e-5)


def test_padding_behind_a_prompt_changes_nothing(tiny_flow) -> None:
    family = load_family(tiny_flow("qwen_image"))
    denoiser, long = family.load_denoiser(), pad_prompts([torch.randn(3, 16), torch.randn(9, 16)])
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
    together = family.predict(denoiser, latents, timesteps, long)
    alone = family.predict(denoiser, latents[:1], timesteps[:1], {key: value[:1] for key, value in long.items()})
    assert torch.allclose(together[0], alone[0], atol=1e-5)


def test_guidance_has_the_pipelines_own_name_and_an_empty_prompt(tiny_flow) -> None:
    family = load_family(tiny_flow("qwen_image"))
    assert family.guidance(4.0) == {"true_cfg_scale": 4.0} and family.empty_prompt == " "
    encoded = family.encode_guided(["a cat", "a snq toy on a table"])
    assert encoded["prompt_embeds_mask"].dtype == torch.long and encoded["negative_prompt_embeds"].shape[0] == 2
