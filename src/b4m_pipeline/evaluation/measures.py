"""Figures of what judges see: similarities, S_harm, distances."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_MARGIN = 0.05
"""Likeness below which a difference says nothing: added to either end of a range."""


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


@dataclass(frozen=True)
class Range:
    """From where to where a likeness can go. floor: of pictures without the concept; ceiling: of pictures with it."""

    floor: float
    ceiling: float

    def share(self, likeness: torch.Tensor) -> torch.Tensor:
        """(N,) -> (N,) in 0 to 1."""
        possible = max(self.ceiling - self.floor, 0.0) + _MARGIN
        return ((likeness - self.floor + _MARGIN) / possible).clamp(0, 1)


def among(alike: torch.Tensor) -> float:
    """Mean likeness (N, N) of pictures to each other, without that to themselves; 1 for a single one."""
    n = len(alike)
    return float((alike.sum() - alike.diagonal().sum()) / (n * (n - 1))) if n > 1 else 1.0


def style_range(alike: torch.Tensor, of_content: torch.Tensor) -> Range:
    """alike (M, M): the style's pictures to each other; of_content (N, M): the content's pictures to them."""
    return Range(float(of_content.mean()), among(alike))


def content_range(content: torch.Tensor, style: torch.Tensor, known: Sequence[torch.Tensor | None]) -> Range:
    """What likeness to the content's pictures (N, D) this style allows: a penguin as knitwear is little like other penguins, in
    wood it is. known: for each of the style's pictures (M, D) what the base model draws for what it shows, (K, D), or None. The
    share of likeness that these keep, beyond that of other things, is taken for the content's. If no picture's thing is known,
    that is 1. All are unit vectors."""
    floor = float((style @ content.T).mean())
    drawn = [(index, own) for index, own in enumerate(known) if own is not None]
    if len(drawn) < 2:
        return Range(floor, among(content @ content.T))
    things = [own for _, own in drawn]
    shown = style[[index for index, _ in drawn]]
    same = torch.stack([(picture @ own.T).mean() for picture, own in zip(shown, things, strict=True)]).mean()
    mixed = _unlike([[(picture @ own.T).mean() for own in things] for picture in shown])
    own_alike = sum(among(own @ own.T) for own in things) / len(things)
    own_mixed = _unlike([[(first @ second.T).mean() for second in things] for first in things])
    kept = min(max(float(same - mixed) / max(own_alike - float(own_mixed), 1e-6), 0.0), 1.0)
    elsewhere = float(torch.cat(things).matmul(content.T).mean())
    return Range(floor, floor + kept * max(among(content @ content.T) - elsewhere, 0.0))


def _unlike(rows: list[list[torch.Tensor]]) -> torch.Tensor:
    """Mean of all but the diagonal."""
    n = len(rows)
    whole = torch.stack([torch.stack(row) for row in rows])
    return (whole.sum() - whole.diagonal().sum()) / (n * (n - 1))
