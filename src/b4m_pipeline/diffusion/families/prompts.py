"""Encoded prompts as tensors, also where they have different lengths."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

Prompts = dict[str, torch.Tensor]
"""prompt_embeds (N, T, D), and what else the family's denoiser needs, (N, ...) each. prompt_mask (N, T) where prompts have
different lengths: 1 for a prompt's tokens, 0 for the places behind them, which are zero in prompt_embeds."""

MASK = "prompt_mask"
_BY_TOKEN = ("prompt_embeds", MASK)


def pad_prompts(embeds: Sequence[torch.Tensor]) -> Prompts:
    """Prompts of different lengths, (T_i, D) each, as prompt_embeds and prompt_mask."""
    return join_prompts([{"prompt_embeds": own[None], MASK: torch.ones(1, len(own))} for own in embeds])


def join_prompts(parts: Sequence[Prompts]) -> Prompts:
    """Encoded prompts one after another, as long as the longest."""
    if MASK in parts[0]:
        parts = [_padded(part, max(other[MASK].shape[1] for other in parts)) for part in parts]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def split_prompts(prompts: Prompts) -> list[Prompts]:
    """Encoded prompts one by one, (...) each, every one as long as it is by itself."""
    found = []
    for index in range(len(prompts["prompt_embeds"])):
        own = {key: value[index] for key, value in prompts.items()}
        if MASK in own:
            length = int(own[MASK].sum())
            own |= {key: own[key][:length] for key in _BY_TOKEN}
        found.append(own)
    return found


def stack_prompts(entries: Sequence[Prompts]) -> Prompts:
    """What `split_prompts` gave, as tensors again."""
    return join_prompts([{key: value[None] for key, value in entry.items()} for entry in entries])


def in_float32(encoded: dict[str, Any]) -> dict[str, Any]:
    """Tensors, or lists of them, in float32, whatever they were encoded in; whole numbers stay whole."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(each) for each in value]
        return value.float() if value.is_floating_point() else value

    return {key: one(value) for key, value in encoded.items()}


def _padded(prompts: Prompts, length: int) -> Prompts:
    missing = length - prompts[MASK].shape[1]
    embeds, mask = (prompts[key] for key in _BY_TOKEN)
    return prompts | {"prompt_embeds": F.pad(embeds, (0, 0, 0, missing)), MASK: F.pad(mask, (0, missing))}
