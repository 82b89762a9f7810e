"""Frame of words: the half of content reads the directions of a prompt's features in which known contents differ, the half of
style those in which known styles differ. Our own step beyond the paper, which divides the features by their number.

A linear layer reads x (n). With an orthonormal Q = [Q_1 | Q_2] (n, n) the frame's columns of lora_A stand for Q'x instead of
x: F_A becomes F_A Q_1', L_A becomes L_A Q_2'. Sums of both are ordinary LoRA factors, so nothing changes on export. Only
subspaces are taken from the words; all bases in them follow from the frame's seed, so that rounding on another machine moves
the frozen part by as little.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_STYLES_PER_CONTENT = 6  # of the grid of contents and styles; the whole one would tell little more


@dataclass(frozen=True)
class Directions:
    """Orthonormal columns (n, k) of a layer's inputs, across both fields: `frozen` in which the concepts differ whose half
    reads the frozen columns, `learnt` those whose half reads the learnable ones."""

    frozen: torch.Tensor
    learnt: torch.Tensor

    def turn(self, frozen_columns: int, random: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Q_1 (n, d_A) and Q_2 (n, n - d_A), which together are orthonormal. What tells neither kind apart is divided by
        `random` (n, n), of which as many columns are used as are needed."""
        n = len(self.frozen)
        k = min(self.frozen.shape[1], frozen_columns, n - frozen_columns)
        first, second = self.frozen[:, :k].double(), self.learnt[:, :k].double()
        rest = random[:, : frozen_columns - k].double()
        rest = polar(rest - first @ (first.T @ rest) - second @ (second.T @ rest))
        whole = torch.linalg.qr(torch.cat([first, rest], 1), mode="complete").Q
        return torch.cat([first, rest], 1), whole[:, frozen_columns:]


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix (n, k) with orthonormal columns; unlike one by QR it depends on the matrix's span smoothly."""
    if not matrix.shape[1]:
        return matrix
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def word_grid(contents: Sequence[str], styles: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices of contents and of styles, a pair a prompt: each content in some of the styles, all equally often."""
    shifts = range(min(len(styles), _STYLES_PER_CONTENT))
    pairs = [(content, (content + shift) % len(styles)) for content in range(len(contents)) for shift in shifts]
    return [content for content, _ in pairs], [style for _, style in pairs]


def tell_apart(features: torch.Tensor, contents: list[int], styles: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (n, k) each, orthonormal, in which prompts of different contents, and of different styles, differ most: the
    eigenvectors of the difference of the two covariances, k = n / 8 from either end. features (N, T, n): of N prompts, a row
    a token; contents, styles: which the prompts name (N)."""
    features = features.double()
    difference = _between(features, torch.tensor(contents)) - _between(features, torch.tensor(styles))
    vectors, k = torch.linalg.eigh(difference).eigenvectors, max(1, features.shape[-1] // 8)
    return vectors[:, -k:].flip(1).float(), vectors[:, :k].float()


def _between(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Covariance (n, n) of the labels' mean features, place by place, of trace 1."""
    number = int(labels.max()) + 1
    means = torch.zeros(number, *features.shape[1:], dtype=features.dtype).index_add_(0, labels, features)
    means /= labels.bincount(minlength=number).view(-1, 1, 1)
    means = (means - means.mean(0)).flatten(0, 1)
    covariance = means.T @ means
    return covariance / covariance.trace().clamp(min=1e-12)


def pack_directions(directions: Mapping[str, Directions]) -> str:
    """Directions by layer as text; layers that share them do so there, too."""
    shared: dict[int, dict] = {}
    for layer in sorted(directions):
        own = directions[layer]
        entry = shared.setdefault(id(own), {"layers": [], "shape": list(own.frozen.shape), "data": _text_of(own)})
        entry["layers"].append(layer)
    return json.dumps(list(shared.values()))


def _text_of(directions: Directions) -> str:
    both = torch.stack([directions.frozen, directions.learnt]).numpy().astype("<f4")
    return base64.b64encode(both.tobytes()).decode()


def unpack_directions(text: str) -> dict[str, Directions]:
    """What `pack_directions` was given."""
    found: dict[str, Directions] = {}
    for entry in json.loads(text):
        numbers = np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(2, *entry["shape"])
        own = Directions(*torch.from_numpy(numbers.copy()))
        found |= dict.fromkeys(entry["layers"], own)
    return found


def differing_layer(first: Mapping[str, Directions], second: Mapping[str, Directions]) -> str | None:
    """A layer of the first whose directions are others in the second: text encoders differ that read the same words. None: all
    span the same, up to rounding."""
    for layer, own in first.items():
        other = second[layer]
        for mine, its in ((own.frozen, other.frozen), (own.learnt, other.learnt)):
            if (mine - its @ (its.T @ mine)).square().sum() > 0.01 * mine.shape[1]:
                return layer
    return None
