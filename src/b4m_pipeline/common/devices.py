"""Which device, number format and number of threads a machine is good for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from b4m_pipeline.common.tensor_files import Stored

_HALF = (torch.float16, torch.bfloat16)
DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats by the names that parameters and commands know; no: no mixed precision."""


LARGE = 1_500_000_000
"""Parameters from which on a frozen model is held in half precision on every CPU, if its files are: in float32 it would take
more than 6 GB."""


class DeviceError(ValueError):
    """A device, or a number format on it, that this machine has not; the message names the parameter."""


def present_devices() -> list[str]:
    """The devices of this machine, the fastest first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, there in found.items() if there]


def pick_device(wanted: str = "auto", parameter: str = "device") -> str:
    """auto | cpu | cuda | mps -> the device; auto: cuda, else mps, else cpu. Raises DeviceError if it is not there."""
    present = present_devices()
    if wanted == "auto":
        return present[0]
    if wanted not in present:
        raise DeviceError(f"{parameter} is {wanted}, and torch finds no such device here: use auto or {' or '.join(present)}")
    return wanted


def has_fast_bf16(device: str) -> bool:
    """Whether bfloat16 matrix products are done in hardware: any recent GPU, and CPUs with AVX512-BF16 or AMX. Of Apple's GPUs
    torch does not say; the first ones have none."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    if device == "mps":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(precision: str, device: str) -> str:
    """auto -> bf16 where the machine multiplies it in hardware, else full precision ("no")."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "no"


def check_precision(precision: str, device: str, parameter: str = "precision") -> None:
    """Raise DeviceError for a precision that the device (cpu | cuda | mps) cannot train in."""
    if precision == "fp16" and device == "cpu":
        raise DeviceError(f"{parameter} is fp16, which needs a GPU: use auto, bf16 or no on a CPU")
    if precision == "bf16" and device == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise DeviceError(f"{parameter} is bf16, which needs macOS 14 on Apple's GPUs: use auto, fp16 or no")


def is_large(stored: Stored | None) -> bool:
    """Whether these are more parameters than LARGE."""
    return stored is not None and stored.parameters > LARGE


def encoding_dtype(device: str, stored: Stored | None) -> torch.dtype:
    """Number format for a frozen encoder: that of its files where it is half precision and the device is good for it. On CPUs
    it is bfloat16 or float32. stored: None where the files are not known."""
    if stored is None or stored.dtype not in _HALF:
        return torch.float32
    if device != "cpu":
        return stored.dtype
    fast = stored.dtype == torch.bfloat16 and has_fast_bf16("cpu")  # float16 has digits that bfloat16 lacks
    return torch.bfloat16 if fast or is_large(stored) else torch.float32


def drawing_dtype(device: str, half: torch.dtype = torch.float16, stored: Stored | None = None) -> torch.dtype:
    """Number format to draw in: half precision on GPUs, on CPUs float32, or bfloat16 where the denoiser is large and its files
    are in half precision, too. stored: the denoiser's."""
    if device != "cpu":
        return half
    half_in_files = stored is not None and stored.dtype in _HALF
    return torch.bfloat16 if half_in_files and is_large(stored) else torch.float32


@cache
def all_threads() -> int:
    """CPU threads that torch computes with, unless `computing_threads` says otherwise."""
    return torch.get_num_threads()


def threads_of_a_half() -> int:
    """CPU threads that a break computes with, whether another one is trained beside it or not, as the last digits of results
    depend on their number: half of all, or OMP_NUM_THREADS where that is set. Processes that share a training have shared the
    threads out themselves."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.get_num_threads()
    return all_threads() if os.environ.get("OMP_NUM_THREADS") else max(1, all_threads() // 2)


@contextmanager
def computing_threads(number: int) -> Iterator[None]:
    """Compute with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
