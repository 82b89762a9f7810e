"""The frame: the frozen part that all adapters share which may be recombined (B4M, arXiv 2403.19456, section 3).

A LoRA on a linear layer W (m, n) is dW = (alpha / r) lora_B lora_A. The first d_B = floor(split m) rows of lora_B and the
first d_A = floor(split n) columns of lora_A are frozen, the rest is learnt:

    lora_B = [F_B]  (d_B, r)     lora_A = [F_A | L_A]     dW ~ [F_B F_A   F_B L_A]
             [L_B]                        (r, d_A)             [L_B F_A   L_B L_A]

One concept lives in F_B L_A, the other in L_B F_A. F_B F_A belongs to nobody: the `exact` frame makes it zero, where the
released code has a norm of 3.9 a layer. All F together are the frame.
"""

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.method.adapter import DIRECTIONS_KEY, Adapter
from b4m_pipeline.method.directions import Directions, polar, unpack_directions
from b4m_pipeline.method.params import Side


class FrameMismatchError(ValueError):
    """Halves, or a half and a frame, that do not belong together."""


class TargetError(ValueError):
    """The targets name no layer, or a layer that cannot carry the adapter."""


@dataclass(frozen=True)
class Frame:
    """Which frozen blocks go with which layers of which base model.

    layers: module name -> (out_features m, in_features n). Blocks are drawn on demand, layer by layer, from a private
    generator seeded by (seed, layer name): they depend on neither global RNG state nor the order of layers.
    """

    seed: int
    rank: int
    alpha: float
    split: float
    init: Literal["exact", "paper"]
    scale: float
    base_model: str
    """Which weights, not where they lie: see `families.base_model_id`."""
    layers: dict[str, tuple[int, int]]
    words: str | None = None
    """Digest of the known words that turn the columns of layers that read the prompt (see directions.py). None: no words do."""
    directions: dict[str, Directions] = field(default_factory=dict, compare=False, repr=False)
    """Of these layers. They follow from `words` and `base_model`, so they are no part of the fingerprint."""
    _turns: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        for name, (m, n) in self.layers.items():
            if self.rank > min(m, n):
                raise TargetError(f"rank must be <= min(in, out) = {min(m, n)}, got {self.rank} for {name}")
            if min(self.sizes(name)) < 1 or self.sizes(name)[0] >= m or self.sizes(name)[1] >= n:
                raise TargetError(f"split {self.split} leaves no frozen or no learnable part of {name} ({m}, {n})")

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the frozen blocks; halves with equal fingerprints can be combined."""
        own = self._fields() | {"layers": sorted((k, *v) for k, v in self.layers.items())}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def sizes(self, layer: str) -> tuple[int, int]:
        """(d_B, d_A): frozen rows of lora_B and frozen columns of lora_A."""
        m, n = self.layers[layer]
        return int(self.split * m), int(self.split * n)

    def blocks(self, layer: str) -> "Blocks":
        """Draw a layer's frozen blocks."""
        d_b, d_a = self.sizes(layer)
        generator = torch_generator("frame", self.seed, layer)
        basis = _orthonormal(self.rank, self.rank, generator)  # (r, r)
        if self.init == "paper":
            # Rows of one orthonormal matrix, disjoint for the two halves, repeated where a layer has more than it.
            rows_b = _tile(basis[: self.rank // 2], d_b)
            columns_a = _tile(basis[self.rank // 2 :], d_a).T
            return Blocks(self.scale * columns_a, self.scale * rows_b, basis.T, basis.T)
        half = self.rank // 2
        span_b, span_a = basis[:, :half], basis[:, half:]  # (r, r/2) each: complementary subspaces of R^r
        frozen_b = _orthonormal(d_b, half, generator) @ span_b.T
        if turned := self._turn(layer):
            own, rest = turned
            columns = _orthonormal(len(own), half, generator).double()
            frozen_a = span_a @ polar(own @ (own.T @ columns)).float().T  # (r, n), in the span of Q_1
            return Blocks(self.scale * frozen_a, self.scale * frozen_b, span_a, span_b, rest)
        frozen_a = span_a @ _orthonormal(d_a, half, generator).T
        return Blocks(self.scale * frozen_a, self.scale * frozen_b, span_a, span_b)

    def _turn(self, layer: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Q_1 (n, d_A) in float64 and Q_2 (n, n - d_A) in float32 of a layer that has directions."""
        if layer not in self.directions:
            return None
        n, columns = self.layers[layer][1], self.sizes(layer)[1]
        key = id(self.directions[layer]), columns
        if key not in self._turns:  # most layers read the same
            random = _orthonormal(n, n, torch_generator("frame of words", self.seed, n))
            own, rest = self.directions[layer].turn(columns, random)
            self._turns[key] = own, rest.float()
        return self._turns[key]

    def learnt_columns(self, layer: str, lora_a: torch.Tensor) -> torch.Tensor:
        """What the learnable part of lora_A (r, n) adds to it, (r, n)."""
        if turned := self._turn(layer):
            rest = turned[1].to(lora_a)
            return lora_a @ rest @ rest.T
        learnt = lora_a.clone()
        learnt[:, : self.sizes(layer)[1]] = 0
        return learnt

    def _fields(self) -> dict[str, Any]:
        return {own.name: getattr(self, own.name) for own in fields(self) if own.name not in ("directions", "_turns")}

    def describe(self) -> str:
        """JSON of all that the fingerprint knows, from which `frame_of` makes the frame again."""
        return json.dumps(self._fields() | {"layers": {k: list(v) for k, v in self.layers.items()}}, sort_keys=True)


@dataclass(frozen=True)
class Blocks:
    """F_A (r, d_A), F_B (d_B, r) and orthonormal bases (r, k) of the subspaces of R^r that each lies in. Where words turn the
    columns, F_A is (r, n) and `rest` the Q_2 (n, n - d_A) that the learnable ones stand for."""

    frozen_a: torch.Tensor
    frozen_b: torch.Tensor
    span_a: torch.Tensor
    span_b: torch.Tensor
    rest: torch.Tensor | None = None


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Random (rows, columns) with orthonormal columns, or orthonormal rows where there are fewer rows. Drawn in float64,
    so that products of orthogonal blocks vanish to float32 rounding."""
    gaussian = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(gaussian).Q
    return (q if rows >= columns else q.T).float()


def _tile(rows: torch.Tensor, wanted: int) -> torch.Tensor:
    """Repeat rows (k, r) until there are `wanted`, scaled to keep the block's norm."""
    repeats = -(-wanted // rows.shape[0])
    return rows.repeat(repeats, 1)[:wanted] / repeats**0.5


def frame_of(adapter: Adapter) -> Frame:
    """The frame that an adapter's metadata describes; raises FrameMismatchError if there is none, or if it does not
    have its fingerprint."""
    stored = json.loads(adapter.metadata["frame_config"])
    if "layers" not in stored:
        raise FrameMismatchError(f"{adapter.metadata['name']} has no frame: it is a plain LoRA, without halves")
    directions = unpack_directions(adapter.metadata.get(DIRECTIONS_KEY, "[]"))
    frame = Frame(**{**stored, "layers": {k: tuple(v) for k, v in stored["layers"].items()}}, directions=directions)
    require_same_frame(adapter.metadata["frame"], frame.fingerprint)
    return frame


def require_same_frame(first: str, second: str) -> None:
    """Raise FrameMismatchError, naming both fingerprints, if they differ."""
    if first != second:
        raise FrameMismatchError(
            f"Adapters of two frames cannot be combined: {first} and {second}. Halves fit together if they were trained "
            "with the same frame seed, rank, alpha, split, init, scale, targets and words on the same base model."
        )


def half_side(kind: Literal["content", "style"], content_side: Side) -> Side:
    """Which factor a kind of concept is trained in. The released code gives content lora_A; the paper's figure shows the
    reverse, so it is a parameter."""
    other: Side = "lora_B" if content_side == "lora_A" else "lora_A"
    return content_side if kind == "content" else other
