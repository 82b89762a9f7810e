"""How much memory a stage takes, at most."""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

logger = logging.getLogger(__name__)


def reset_peak(device: str) -> None:
    """Forget peaks so far, where that can be done: on a GPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif device == "mps":
        torch.mps.empty_cache()  # what it holds from here on is what was needed: it gives nothing back by itself


def peak_gib(device: str) -> float:
    """GiB. cuda: the most that tensors held since the last reset. mps: what the process holds of the GPU's memory, in use or
    not. cpu: the most that the process has ever held, whatever it did before included."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if device == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    return process_peak() / 2**30


def device_memory(device: str) -> int:
    """Bytes of memory that a device (cpu | cuda | mps) has, in use or not."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    if device == "mps":
        return torch.mps.recommended_max_memory()
    return psutil.virtual_memory().total


def available_memory() -> int:
    """Bytes of this machine's memory that can be had now without swapping."""
    return psutil.virtual_memory().available


def process_peak() -> int:
    """The most bytes that this process has ever held: `VmHWM` on Linux, where `ru_maxrss` starts at the size of the process
    that started this one, the largest working set on Windows, elsewhere `ru_maxrss`."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)):
        return int(found[1]) * 1024
    import resource  # noqa: TID251 - Windows has no such module, and does not come here

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def reported_peak(stage: str, device: str, log: Callable[[dict[str, float], int], None]) -> Iterator[None]:
    """Say in the log and to `log`, at step 0, how much memory a stage took at most: as `peak_memory_gib` on a GPU, as
    `process_peak_memory_gib` on a CPU, where the peak is of the whole process until then."""
    reset_peak(device)
    yield
    peak = peak_gib(device)
    if device == "cpu":
        logger.debug("%s done; this process has held at most %.2f GiB of memory so far", stage, peak)
        log({"process_peak_memory_gib": peak}, 0)
    else:
        logger.debug("%s: at most %.2f GiB of GPU memory", stage, peak)
        log({"peak_memory_gib": peak}, 0)
