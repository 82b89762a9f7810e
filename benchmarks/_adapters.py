"""Adapters of random weights: what a registry or a drawing costs does not depend on what the weights are."""

import json

import torch

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.adapter import RECIPE_KEY, Adapter
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.frame import Frame
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.setup import make_frame

SIDES = {"content": "lora_A", "style": "lora_B"}
TOKENS = {"content": "grelk", "style": "w@z"}


def tiny_frame(base_model: BaseModelParams, rank: int = 4, targets: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")) -> Frame:
    """Of a few layers."""
    own = {"seed": 0, "rank": rank, "alpha": float(rank), "split": 0.5, "init": "exact", "scale": 1.0}
    own |= {"halves": "orthogonal", "content_side": "lora_A", "basis": "none", "targets": list(targets)}
    return make_frame(base_model, FrameParams(**own))


def random_half(kind: str, name: str, frame: Frame, base_model: BaseModelParams, seed: int = 0) -> Adapter:
    """A content's or a style's half as a break leaves it, with random weights where it learns."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for layer, (m, n) in frame.layers.items():
        blocks, (d_b, d_a) = frame.blocks(layer), frame.sizes(layer)
        lora_a, lora_b = torch.zeros(frame.rank, n), torch.zeros(m, frame.rank)
        lora_a[:, :d_a], lora_b[:d_b] = blocks.frozen_a, blocks.frozen_b
        if kind == "content":
            lora_a[:, d_a:] = 0.02 * torch.randn(frame.rank, n - d_a, generator=generator)
        else:
            lora_b[d_b:] = 0.02 * torch.randn(m - d_b, frame.rank, generator=generator)
        tensors |= {f"{layer}.lora_A.weight": lora_a, f"{layer}.lora_B.weight": lora_b}
    params = {"frame": {"halves": "orthogonal"}, "seed": seed, "train": {"steps": 300, "learning_rate": 2e-4}}
    metadata = {
        "kind": kind,
        "name": name,
        "noun": "toy",
        "token": TOKENS[kind],
        "half": SIDES[kind],
        "base_model": base_model.path,
        "resolution": str(base_model.resolution),
        "frame": frame.fingerprint,
        "frame_config": frame.describe(),
        "data_digest": f"{seed:016x}",
        "params": json.dumps(params),
        "code_version": "0",
        "created": "2026-11-28T12:00:00+00:00",
        "architecture": "other",
        "prediction_type": "v_prediction",
        RECIPE_KEY: f"{seed:016x}",
    }
    targets = sorted(frame.layers)
    return Adapter(tensors, metadata, {"r": frame.rank, "lora_alpha": frame.alpha, "target_modules": targets})


def random_pair(content: str, style: str, frame: Frame, base_model: BaseModelParams, seed: int = 0) -> Adapter:
    """Two halves side by side."""
    halves = [random_half(*own, frame, base_model, seed) for own in (("content", content), ("style", style))]
    return join_halves(*halves, "lora_A")
