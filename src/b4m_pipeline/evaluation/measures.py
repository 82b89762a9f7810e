"""Figures of what judges see: similarities, S_harm, distances."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Judgement:
    """What a judge sees in N pictures. content (N, D) and style (N, E): unit vectors; maps: feature maps of unit length
    along channels, (N, C, h, w) each, or none."""

    content: torch.Tensor
    style: torch.Tensor
    maps: tuple[torch.Tensor, ...] = ()


def similarity(pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each picture (N, D) to all references (M, D), unit vectors -> (N,)."""
    return (pictures @ references.T).mean(1)


def perceptual_distance(pictures: Judgement, truth: Judgement) -> torch.Tensor:
    """Squared distance of unit features, averaged over places and summed over maps: LPIPS without learnt weights (Zhang et
    al. 2018, arXiv 1801.03924). To the nearest of the true drawings -> (N,), 0 for equal pictures."""
    total = torch.zeros(len(pictures.content), len(truth.content))
    for own, other in zip(pictures.maps, truth.maps, strict=True):
        total += (own[:, None] - other[None]).square().sum(2).mean((2, 3))  # (N, M, C, h, w) -> (N, M)
    return total.min(1).values


def kernel_distance(own: torch.Tensor, true: torch.Tensor) -> float:
    """Kernel distance of two sets of features (N, D) and (M, D), the unbiased squared MMD with the cubic kernel (KID: Bińkowski
    et al. 2018, arXiv 1801.01401). Unlike FID it is of use with a hundred pictures. 0 for sets of one distribution."""
    dimensions = own.shape[1]
    within_own, within_true, across = (
        (first @ second.T / dimensions + 1) ** 3 for first, second in ((own, own), (true, true), (own, true))
    )

    def mean_off_diagonal(kernel: torch.Tensor) -> torch.Tensor:
        return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))

    return float(mean_off_diagonal(within_own) + mean_off_diagonal(within_true) - 2 * across.mean())


def harmonic_mean(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """S_harm: high only if content and style both are. Similarities below zero count as zero."""
    content, style = content.clamp(min=0), style.clamp(min=0)
    return 2 * content * style / (content + style).clamp(min=1e-9)
