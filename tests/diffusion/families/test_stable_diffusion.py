"""Stable Diffusion 1.x and 2.x against diffusers' own pipeline."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from b4m_pipeline.diffusion.families import StableDiffusion, load_family
from b4m_pipeline.diffusion.params import BaseModelParams


@pytest.fixture(scope="module")
def family(tiny_sd):
    return load_family(BaseModelParams(path=str(tiny_sd), resolution=32))


def test_prompts_are_encoded_as_the_pipeline_does(family, tiny_sd):
    assert isinstance(family, StableDiffusion)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    prompts = ["a cat", "a snq toy"]
    embeds, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    encoded = family.encode_prompts(prompts, batch_size=1)
    assert encoded.keys() == {"prompt_embeds"} and torch.allclose(encoded["prompt_embeds"], embeds)
    guided = family.encode_guided(prompts)
    _, empty = pipeline.encode_prompt(prompts, "cpu", 1, True)
    assert torch.allclose(guided["prompt_embeds"], embeds) and torch.allclose(guided["negative_prompt_embeds"], empty)
    assert not torch.allclose(guided["negative_prompt_embeds"], embeds)


def test_the_unet_is_given_the_prompt_alone(family):
    batch = family.encode_prompts(["a cat", "a dog"])
    conditions = family.conditions(batch, (16, 32))
    assert conditions.keys() == {"encoder_hidden_states"}
    unet = family.load_denoiser()
    assert unet(torch.zeros(2, 4, 16, 16), torch.tensor([1, 2]), **conditions).sample.shape == (2, 4, 16, 16)


def test_layers_that_read_the_prompt_are_the_keys_and_values_of_cross_attention(family):
    unet, prompts = family.load_denoiser(), family.encode_prompts(["a cat", "a dog"])
    names = family.prompt_layers(unet)
    assert names and all(name.endswith((".attn2.to_k", ".attn2.to_v")) for name in names)
    inputs, seen = family.prompt_inputs(unet, prompts), {}
    for name in names:
        unet.get_submodule(name).register_forward_pre_hook(lambda module, given, name=name: seen.update({name: given[0]}))
    unet(torch.zeros(2, 4, 16, 16), torch.tensor([1, 2]), **family.conditions(prompts))
    assert all(torch.equal(seen[name], inputs[name]) for name in names)
