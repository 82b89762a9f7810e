"""Adapters as files for other programs: under kohya's names, which A1111, ComfyUI, Forge, SD.Next and diffusers read for UNets,
or under diffusers', which ComfyUI reads for transformers."""

import json
import os
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from b4m_pipeline.common.devices import DTYPES
from b4m_pipeline.common.tensor_files import save_tensors
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.registry.modelspec import HASH_KEY, About, ExportError, file_metadata

# What the original SDXL code calls layers outside its blocks; inside them the readers know diffusers' names.
_ORIGINAL_NAMES = {
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
}


def kohya_name(module: str) -> str:
    """ "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k" -> "lora_unet_up_blocks_0_..._attn2_to_k"."""
    return "lora_unet_" + _ORIGINAL_NAMES.get(module, module.replace(".", "_"))


def to_kohya(adapter: Adapter, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """lora_down (r, in), lora_up (out, r) and alpha of every layer. Raises ExportError if a weight overflows in `dtype`."""
    tensors = {}
    for module in adapter.modules():
        name = kohya_name(module)
        for theirs, ours in (("lora_down", "lora_A"), ("lora_up", "lora_B")):
            tensor = adapter.tensors[f"{module}.{ours}.weight"].to(dtype).contiguous()
            tensors[f"{name}.{theirs}.weight"] = _finite(tensor, adapter, module)
        tensors[f"{name}.alpha"] = torch.tensor(float(adapter.lora_config["lora_alpha"]), dtype=dtype)
    return tensors


def to_diffusers(adapter: Adapter, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """lora_A (r, in) and lora_B (out, r) of every layer under diffusers' names, which ComfyUI reads for transformers; the scale
    alpha / r is in lora_B, as the format has none. Raises ExportError if a weight overflows in `dtype`."""
    scale = adapter.lora_config["lora_alpha"] / adapter.rank
    tensors = {}
    for key, tensor in adapter.tensors.items():
        own = (tensor.float() * (scale if ".lora_B." in key else 1)).to(dtype).contiguous()
        tensors[adapter.prefix + key] = _finite(own, adapter, key)
    return tensors


def _finite(tensor: torch.Tensor, adapter: Adapter, name: str) -> torch.Tensor:
    if not torch.isfinite(tensor).all():
        raise ExportError(f"{adapter.metadata['name']}: a weight of {name} does not fit into {tensor.dtype}: use fp32")
    return tensor


def export_adapter(
    adapter: Adapter, path: Path, dtype: Literal["fp16", "bf16", "fp32"] = "fp16", about: About | None = None
) -> Path:
    """Write one safetensors file, with what it is in its header (see modelspec.py): the same bytes for the same adapter. The
    names are kohya's for a UNet and diffusers' for a transformer. Raises ExportError for another ending than .safetensors, by
    which readers go, and for a file that is there and is no earlier export of this adapter."""
    if path.suffix != ".safetensors":
        raise ExportError(f"{path} must end in .safetensors")
    if os.path.lexists(path) and _exported_from(path) != (adapter.metadata["name"], adapter.metadata["kind"]):
        raise ExportError(f"{path} is there already, and is no export of this adapter: give another name, or remove it first")
    tensors = (to_kohya if adapter.prefix == "unet." else to_diffusers)(adapter, DTYPES[dtype])
    return save_tensors(tensors, path, file_metadata(adapter, about or About()), HASH_KEY)


def _exported_from(path: Path) -> tuple[str, str] | None:
    """Name and kind of the adapter that a file was exported from; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        own = json.loads(header["b4m"]) if HASH_KEY in header else {}
        return own["name"], own["kind"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
