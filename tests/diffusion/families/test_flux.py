"""FLUX.1; what it shares with others is in test_flows.py."""

import pytest
import torch

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.sampling import GenerationError, ImageRequest, draw


@pytest.mark.parametrize(("name", "told"), [("flux", [1.0, 1.0]), ("schnell", None)])
def test_dev_is_told_that_training_pictures_have_no_guidance(name, told, tiny_flow) -> None:
    family = load_family(tiny_flow(name))
    denoiser, seen = family.load_denoiser(), []
    denoiser.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    prompts = {"prompt_embeds": torch.randn(2, 5, 32), "pooled_prompt_embeds": torch.randn(2, 8)}
    family.predict(denoiser, torch.randn(2, 4, 8, 4), torch.tensor([250.0, 1000.0]), prompts)
    (given,) = seen
    assert (given["guidance"] if told is None else given["guidance"].tolist()) == told
    assert given["timestep"].tolist() == [0.25, 1.0]
    assert given["img_ids"].tolist()[:3] == [[0, 0, 0], [0, 0, 1], [0, 1, 0]] and given["hidden_states"].shape == (2, 8, 16)


def test_a_negative_prompt_that_would_not_count_is_refused(tiny_flow) -> None:
    pipeline = load_family(tiny_flow("schnell")).load_pipeline()
    settings = {"steps": 1, "guidance_scale": 3.5, "batch_size": 1, "size": (32, 32)}
    with pytest.raises(GenerationError, match="negative_prompt is 'blur', and FluxPipeline takes none: set it to null"):
        list(draw(pipeline, [ImageRequest("a cat", 0)], negative_prompt="blur", **settings))
