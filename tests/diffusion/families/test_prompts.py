"""Prompts of different lengths as tensors, and back."""

import torch

from b4m_pipeline.diffusion.families.prompts import MASK, join_prompts, pad_prompts, split_prompts, stack_prompts

EMBEDS = [torch.randn(length, 3) for length in (2, 5, 1)]


def test_prompts_are_as_long_as_the_longest_and_say_how_long_they_are() -> None:
    padded = pad_prompts(EMBEDS)
    assert padded["prompt_embeds"].shape == (3, 5, 3) and padded[MASK].sum(1).tolist() == [2, 5, 1]
    for own, row, mask in zip(EMBEDS, padded["prompt_embeds"], padded[MASK].bool(), strict=True):
        assert torch.equal(row[mask], own) and not row[~mask].any()


def test_what_is_kept_of_a_prompt_does_not_depend_on_the_others() -> None:
    alone, together = pad_prompts(EMBEDS[:1]), pad_prompts(EMBEDS)
    (own,), first = split_prompts(alone), split_prompts(together)[0]
    assert own.keys() == first.keys() and all(torch.equal(own[key], first[key]) for key in own)
    again = stack_prompts(split_prompts(together))
    assert all(torch.equal(again[key], together[key]) for key in together)
    longer = join_prompts([alone, together])
    assert longer["prompt_embeds"].shape == (4, 5, 3) and torch.equal(longer["prompt_embeds"][0], longer["prompt_embeds"][1])


def test_prompts_of_one_length_are_taken_as_they_are() -> None:
    encoded = {"prompt_embeds": torch.randn(2, 4, 3), "pooled_prompt_embeds": torch.randn(2, 6)}
    again = stack_prompts(split_prompts(encoded))
    assert all(torch.equal(again[key], encoded[key]) for key in encoded)
    assert join_prompts([encoded, encoded])["pooled_prompt_embeds"].shape == (4, 6)
