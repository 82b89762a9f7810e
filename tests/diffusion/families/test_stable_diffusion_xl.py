"""SDXL against diffusers' own pipeline."""

import torch
from diffusers import StableDiffusionXLPipeline

from b4m_pipeline.diffusion.families import load_family


def test_sdxl_prompts_are_encoded_as_the_pipeline_does(tiny_base):
    family = load_family(tiny_base)
    encoded = family.encode_prompts(["a cat", "a snq toy"], batch_size=1)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base.path)
    embeds, _, pooled, _ = pipeline.encode_prompt(["a cat", "a snq toy"], do_classifier_free_guidance=False)
    assert torch.allclose(encoded["prompt_embeds"], embeds) and torch.allclose(encoded["pooled_prompt_embeds"], pooled)
    assert not torch.allclose(embeds[0], embeds[1])
