"""GGUF files: transformers whose weights are quantised, as diffusers reads them. Adapters are trained on top in float32."""

from importlib.util import find_spec
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig

from b4m_pipeline.common.tensor_files import Held
from b4m_pipeline.diffusion.families.identity import BaseModelError
from b4m_pipeline.diffusion.families.quantized import QuantizationError
from b4m_pipeline.diffusion.params import BaseModelParams

_PLAIN = {"F32", "F16", "BF16"}
"""Formats of weights that are not quantised."""


def is_gguf(path: str) -> bool:
    return path.lower().endswith(".gguf")


def check_package(params: BaseModelParams) -> None:
    """Raise QuantizationError for a GGUF file if the package that reads it is absent, or if its weights are to be quantised
    once more, or moved layer by layer."""
    if not is_gguf(params.path):
        return
    if find_spec("gguf") is None:
        raise QuantizationError(
            f"base_model.path {params.path!r} is a GGUF file, which needs the package gguf: pip install gguf, or "
            'pip install -e ".[quantization]"'
        )
    file = f"is not for a GGUF file ({params.path!r}), whose weights are quantised already: use"
    if params.quantization:
        raise QuantizationError(f"base_model.quantization: {params.quantization} {file} null")
    if params.offload == "group":
        raise QuantizationError(f"base_model.offload: group {file} model, or null")


def check_formats(path: str, part: str, held: dict[str, Held]) -> None:
    """Raise BaseModelError for weights of a GGUF file that diffusers does not read. part: unet | transformer."""
    if part == "unet":
        raise BaseModelError(f"base_model.path {path!r}: GGUF files are read for transformers alone, and this is a UNet")
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    known = _PLAIN | {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES}
    if other := sorted({own.format for own in held.values()} - known):
        raise BaseModelError(f"base_model.path {path!r} has weights in {', '.join(other)}; diffusers reads {sorted(known)}")


def read(path: str) -> dict[str, torch.Tensor]:
    """All tensors, quantised as they are."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    return load_gguf_checkpoint(path)


def loading(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_single_file`. dtype: what the weights are multiplied in."""
    return {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)}
