"""Z-Image; what it shares with others is in test_flows.py."""

import torch

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.families.prompts import pad_prompts


def test_time_and_sign_are_turned_and_every_prompt_is_as_long_as_it_is(tiny_flow) -> None:
    family = load_family(tiny_flow("z_image"))
    denoiser, seen = family.load_denoiser(), {}
    denoiser.register_forward_hook(lambda module, given, said: seen.update(given=given, said=said.sample))
    prompts = pad_prompts([torch.randn(3, 16), torch.randn(40, 16)])
    timesteps = torch.tensor([0.0, 750.0])
    answer = family.predict(denoiser, torch.randn(2, 4, 8, 8), timesteps, prompts)
    latents, told, words = seen["given"]
    assert told.tolist() == [1.0, 0.25] and [len(own) for own in words] == [3, 40] and latents[0].shape == (4, 1, 8, 8)
    assert torch.equal(answer, -torch.stack([own[:, 0] for own in seen["said"]]))
    assert torch.allclose(family.timestep_of_call(told), timesteps)


def test_the_context_refiner_reads_its_padding_too(tiny_flow) -> None:
    family = load_family(tiny_flow("z_image"))
    denoiser = family.load_denoiser()
    inputs = family.prompt_inputs(denoiser, pad_prompts([torch.randn(3, 16), torch.randn(40, 16)]))
    lengths = {name: rows.any(-1).sum(1).tolist() for name, rows in inputs.items()}
    assert lengths["cap_embedder.1"] == [3, 40]
    assert lengths["context_refiner.0.attention.to_q"] == [32, 64]  # multiples of 32, as the transformer has it
    queries, keys = (inputs[f"context_refiner.0.attention.{name}"] for name in ("to_q", "to_k"))
    assert queries is keys  # one copy
    assert not denoiser.layers[0]._forward_pre_hooks
