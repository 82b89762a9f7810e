"""Which device and number format a machine is good for."""

import torch

DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by the names that parameters and commands know; no: no mixed precision."""


def pick_device(wanted: str = "auto") -> str:
    """auto | cpu | cuda -> cpu or cuda. Raises ValueError if cuda is asked for and absent."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but this machine has no usable GPU: set it to auto or cpu")
    return wanted


def has_fast_bf16(device: str) -> bool:
    """Whether bfloat16 matrix products are done in hardware: any recent GPU, and CPUs with AVX512-BF16 or AMX."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(precision: str, device: str) -> str:
    """auto -> bf16 where the machine multiplies it in hardware, else full precision ("no")."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "no"
