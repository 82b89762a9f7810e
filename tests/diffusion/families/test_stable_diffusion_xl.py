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


def test_the_unet_is_told_the_pictures_size(tiny_base):
    family = load_family(tiny_base)
    batch = family.encode_prompts(["a cat", "a dog"])
    square, wide = family.conditions(batch), family.conditions(batch, (16, 48))
    side = tiny_base.resolution
    assert square["added_cond_kwargs"]["time_ids"].tolist() == [[side, side, 0, 0, side, side]] * 2
    assert wide["added_cond_kwargs"]["time_ids"].tolist() == [[16, 48, 0, 0, 16, 48]] * 2


def test_layers_that_read_the_prompt_get_what_the_unet_gives_them(tiny_base):
    family = load_family(tiny_base)
    unet, prompts = family.load_denoiser(), family.encode_prompts(["a cat", "a dog"])
    names, inputs, seen = family.prompt_layers(unet), family.prompt_inputs(unet, prompts), {}
    assert {"add_embedding.linear_1", "add_embedding.linear_2"} < set(names)
    for name in names:
        unet.get_submodule(name).register_forward_pre_hook(lambda module, given, name=name: seen.update({name: given[0]}))
    unet(torch.zeros(2, 4, 16, 16), torch.tensor([1, 2]), **family.conditions(prompts))
    for name in names:
        assert torch.allclose(seen[name].reshape(inputs[name].shape), inputs[name], atol=1e-6), name
