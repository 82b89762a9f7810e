"""Two LoRAs of one base model merged into one by arithmetic on their weights, without the base model and without pictures.

A layer that only one of the two adapts is merged as if the other did nothing there. Convolutions, (r, in, h, w) and
(out, r, 1, 1), count as the linear layers that they are for each patch.
"""

from collections.abc import Iterable

import torch
from peft.utils.merge_utils import dare_ties, task_arithmetic, ties

from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import Merge, MergeParams

Factors = tuple[torch.Tensor, torch.Tensor]
"""lora_A (r, in, ...) and lora_B (out, r, ...) of a layer."""


def from_factors(factors: dict[str, Factors], metadata: dict[str, str]) -> Adapter:
    """An adapter whose change of a layer is lora_B lora_A. Layers of a smaller rank than others are filled up with zeros."""
    rank = max(len(lora_a) for lora_a, _ in factors.values())
    tensors = {}
    for module, (lora_a, lora_b) in factors.items():
        tensors[f"{module}.lora_A.weight"] = _filled(lora_a, 0, rank)
        tensors[f"{module}.lora_B.weight"] = _filled(lora_b, 1, rank)
    return Adapter(tensors, metadata, {"r": rank, "lora_alpha": rank, "target_modules": sorted(factors)})


def merge(content: Adapter, style: Adapter, how: Merge, params: MergeParams, seed: int = 0) -> Adapter:
    """The two as one adapter without metadata. seed: of `dare`, which drops weights at random.

    sum: exactly, of their ranks' sum. svd: the nearest to it of the wanted rank. ties (Yadav et al. 2023, arXiv 2306.01708)
    and dare (Yu et al. 2023, arXiv 2311.03099, with the signs of ties): as PEFT's add_weighted_adapter, back to that rank.
    np: see `project_off`.
    """
    weights = (params.content_weight, params.style_weight)
    if how in ("sum", "np"):
        first = project_off(content, style, params.np_strength) if how == "np" else content
        return stack([weighted(first, weights[0]), weighted(style, weights[1])])
    rank = params.rank or max(content.rank, style.rank)
    factors = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in _modules((content, style)):
            held = [(part, weight) for part, weight in zip((content, style), weights, strict=True) if _has(part, module)]
            deltas, factor = [delta(part, module) for part, _ in held], torch.tensor([weight for _, weight in held])
            if how == "svd":
                merged = task_arithmetic(deltas, factor)
            else:
                merged = (ties if how == "ties" else dare_ties)(deltas, factor, params.density)
            left, size, right = torch.linalg.svd(merged, full_matrices=False)
            lora_a, lora_b = _factors(held[0][0], module)
            shapes = (-1, *lora_a.shape[1:]), (len(lora_b), -1, *lora_b.shape[2:])
            factors[module] = right[:rank].reshape(shapes[0]), (left[:, :rank] * size[:rank]).reshape(shapes[1])
    return from_factors(factors, {})


def stack(parts: list[Adapter]) -> Adapter:
    """The exact sum of several adapters as one of their ranks' sum, without metadata. A part's rows of lora_A stay as they
    are."""
    factors = {}
    for module in _modules(parts):
        held = [part for part in parts if _has(part, module)]
        lora_a, lora_b = zip(*(_factors(part, module) for part in held), strict=True)
        scaled = [part.scaling * factor for part, factor in zip(held, lora_b, strict=True)]
        factors[module] = torch.cat(lora_a, 0), torch.cat(scaled, 1)
    return from_factors(factors, {})


def project_off(content: Adapter, style: Adapter, strength: float) -> Adapter:
    """Content's part in NP-LoRA (Chen et al. 2025, arXiv 2511.11051), soft and in closed form: dW_c (I - mu / (1 + mu) V V'),
    V being an orthonormal basis of the row space of style's dW_s."""
    share, tensors = strength / (1 + strength), dict(content.tensors)
    for module in content.modules():
        if not _has(style, module):
            continue
        lora_a, lora_b = (factor.flatten(1) for factor in _factors(style, module))
        _, size, right = torch.linalg.svd(torch.linalg.qr(lora_b).R @ lora_a, full_matrices=False)  # of dW_s, but for Q
        rows = right[size > size[0] * max(lora_a.shape[1], len(lora_b)) * torch.finfo(size.dtype).eps]
        own = content.tensors[f"{module}.lora_A.weight"]
        flat = own.flatten(1)
        tensors[f"{module}.lora_A.weight"] = (flat - share * (flat @ rows.T) @ rows).reshape(own.shape)
    return Adapter(tensors, content.metadata, content.lora_config)


def weighted(adapter: Adapter, weight: float) -> Adapter:
    """The adapter with its whole change scaled."""
    tensors = {key: tensor * weight if ".lora_B." in key else tensor for key, tensor in adapter.tensors.items()}
    return Adapter(tensors, adapter.metadata, adapter.lora_config)


def delta(adapter: Adapter, module: str) -> torch.Tensor:
    """The change of a layer's weight, (out, in) or, for a convolution, (out, in h w)."""
    lora_a, lora_b = _factors(adapter, module)
    return adapter.scaling * lora_b.flatten(1) @ lora_a.flatten(1)


def _factors(adapter: Adapter, module: str) -> Factors:
    return adapter.tensors[f"{module}.lora_A.weight"], adapter.tensors[f"{module}.lora_B.weight"]


def _has(adapter: Adapter, module: str) -> bool:
    return f"{module}.lora_A.weight" in adapter.tensors


def _modules(parts: Iterable[Adapter]) -> list[str]:
    return sorted({module for part in parts for module in part.modules()})


def _filled(factor: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    missing = list(factor.shape)
    missing[dim] = rank - missing[dim]
    return torch.cat([factor, factor.new_zeros(missing)], dim)
