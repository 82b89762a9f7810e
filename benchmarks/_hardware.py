"""What a measurement was made on: its names, and what the machine's matrix units can do."""

import os
import platform
import time
from pathlib import Path

import torch


def describe(device: str, dtype: torch.dtype) -> dict[str, str | int]:
    """Processor or GPU, cores and threads, library version and number format."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    machine = {
        "processor": models[0].split(":", 1)[1].strip() if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return {"gpu": torch.cuda.get_device_name()} | machine if device == "cuda" else machine


def synchronize(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def matmul_peak(device: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of one large square matrix product, the best of what fits in `seconds`."""
    side = 1536 if device == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    left @ right
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronize(device)
        begun = time.perf_counter()
        left @ right
        synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
