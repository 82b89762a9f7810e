"""Adapters of two small layers, without a base model: whole ones, to be spoilt."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from b4m_pipeline.method.adapter import WEIGHTS_NAME, Adapter
from b4m_pipeline.method.frame import Frame

LAYERS = {"mid.attn2.to_k": (8, 6), "mid.attn2.to_v": (8, 6)}
KEY = "mid.attn2.to_k.lora_A.weight"


def whole(kind: str = "made") -> Adapter:
    """A made adapter, a half ("content"), or a merge ("merged")."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (m, n) in LAYERS.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, n, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(m, 4, generator=generator)
    frame = Frame(0, 4, 4.0, 0.5, "exact", 1.0, "tiny@0123", LAYERS)
    about = {
        "kind": kind,
        "name": "cup" if kind == "content" else "cup-ink",
        "base_model": "some/model",
        "frame": frame.fingerprint,
        "frame_config": frame.describe(),
        "data_digest": "0123",
        "params": '{"frame": {"halves": "orthogonal"}, "train": {"steps": 2}, "seed": 0}',
        "code_version": "0",
        "resolution": "32",
        "half": "both",
        "noun": "toy",
    }
    if kind == "content":
        about |= {"half": "lora_A", "token": "snq"}
    else:
        about |= {"content_name": "cup", "style_name": "ink", "content_token": "snq", "style_token": "w@z"}
        about |= {"content_side": "lora_A", "architecture": "other", "parents": "[]"}
    if kind == "merged":
        about |= {"frame": "none", "frame_config": '{"base_model": "tiny@0123"}'}
    return Adapter(tensors, about, {"r": 4, "lora_alpha": 4.0, "target_modules": sorted(LAYERS)})


def write(adapter: Adapter, folder: Path, b4m: Any = ...) -> Path:
    """The file as `save_adapter` writes it, without a look at what is in it. b4m: text in place of its metadata as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {f"unet.{key}": value for key, value in adapter.lora_config.items()}
    about = json.dumps(adapter.metadata) if b4m is ... else b4m
    header = {"b4m": about, "lora_adapter_metadata": json.dumps(config)}
    tensors = {f"unet.{key}": tensor.contiguous() for key, tensor in adapter.tensors.items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata=header)
    return folder


def is_one_line(message: str) -> bool:
    """Whether a user can read it: a line, no traceback, and not the whole of what was wrong."""
    return "\n" not in message.strip() and "Traceback" not in message and 10 < len(message) < 700
