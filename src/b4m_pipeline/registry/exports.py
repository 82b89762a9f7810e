"""Adapters as files for other programs: kohya's key names, which A1111, ComfyUI, Forge, SD.Next and diffusers read."""

from pathlib import Path
from typing import Literal

import torch

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
            if not torch.isfinite(tensor).all():
                raise ExportError(f"{adapter.metadata['name']}: a weight of {module} does not fit into {dtype}: use fp32")
            tensors[f"{name}.{theirs}.weight"] = tensor
        tensors[f"{name}.alpha"] = torch.tensor(float(adapter.lora_config["lora_alpha"]), dtype=dtype)
    return tensors


def export_adapter(
    adapter: Adapter, path: Path, dtype: Literal["fp16", "bf16", "fp32"] = "fp16", about: About | None = None
) -> Path:
    """Write one safetensors file in kohya's format, with what it is in its header (see modelspec.py): the same bytes for the
    same adapter. Raises ExportError for another ending than .safetensors, by which readers go."""
    if path.suffix != ".safetensors":
        raise ExportError(f"{path} must end in .safetensors")
    return save_tensors(to_kohya(adapter, DTYPES[dtype]), path, file_metadata(adapter, about or About()), HASH_KEY)
