"""What a training step sees, made ahead of it where that pays."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

WORKERS = 8


class _Steps(Dataset):
    """Item i is what `make` gives for step start + i."""

    def __init__(self, make: Callable[[int], Any], start: int, steps: int):
        self.make, self.start, self.steps = make, start, steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __getitem__(self, index: int) -> Any:
        return self.make(self.start + index)


def prefetch(make: Callable[[int], Any], start: int, steps: int, device: str) -> Iterator[Any]:
    """`make(step)` for each step from `start` up to `steps`. It depends on the step alone, so it does not matter who makes it.

    A GPU would wait for the one core that composes and captions pictures, so other processes do that; on a CPU all cores are
    at work as it is. The drawings are gigabytes, which a process that is not forked would need anew, so without fork (Windows)
    and beside Apple's GPUs, which do not bear it, this process makes all."""
    cores = os.cpu_count() or 1
    forks = device == "cuda" and "fork" in multiprocessing.get_all_start_methods()
    workers = max(1, min(WORKERS, cores - 2)) if forks else 0
    context = "fork" if forks else None
    loader = DataLoader(_Steps(make, start, steps), batch_size=None, num_workers=workers, multiprocessing_context=context)
    return iter(loader)
