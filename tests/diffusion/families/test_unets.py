"""What the families with a UNet share."""

import torch
from diffusers.models.attention_processor import AttnProcessor

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.families.unets import cross_attention_layers
from b4m_pipeline.diffusion.params import BaseModelParams


def test_the_unet_is_loaded_frozen_and_asked_in_its_own_words(tiny_sd) -> None:
    family = load_family(BaseModelParams(path=str(tiny_sd), resolution=32))
    unet, prompts = family.load_denoiser(), family.encode_prompts(["a cat", "a dog"])
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert all(isinstance(processor, AttnProcessor) for processor in unet.attn_processors.values())
    latents, timesteps = torch.randn(2, 4, 16, 16), torch.tensor([3, 700])
    said = family.predict(unet, latents, timesteps, prompts)
    assert torch.equal(said, unet(latents, timesteps, encoder_hidden_states=prompts["prompt_embeds"]).sample)
    assert family.metadata() == {}  # files of adapters are as they have always been
    names = cross_attention_layers(family.empty_denoiser())
    assert names == cross_attention_layers(unet) and all("attn2" in name for name in names)
