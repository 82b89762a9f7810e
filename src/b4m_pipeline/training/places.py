"""Where breaks can be trained at once: on a CPU's halves, or on a GPU each."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from b4m_pipeline.common.devices import pick_device, threads_of_a_half
from b4m_pipeline.common.memory import available_memory
from b4m_pipeline.training import footprint
from b4m_pipeline.training.stages import BreakStage

logger = logging.getLogger(__name__)

SHORTEST = 100
"""Optimizer steps from which on a training is worth the start of a process, which takes as long as a few dozen."""


@dataclass(frozen=True)
class Place:
    """What a training has for itself. gpu: as CUDA_VISIBLE_DEVICES names it, None on a CPU."""

    gpu: str | None = None


def places_at_once(stages: Sequence[BreakStage]) -> list[Place]:
    """A place for each of them if training them at once is faster, and gives the same weights, as one after another; []
    otherwise."""
    shared = any(stage.params.processes > 1 for stage in stages)  # a training that has several places itself
    if shared or min(stage.params.steps for stage in stages) < SHORTEST:
        return []
    devices = {pick_device(stage.params.device) for stage in stages}
    if devices == {"cuda"}:
        return [Place(gpu) for gpu in _equal_gpus()[: len(stages)]] if len(_equal_gpus()) >= len(stages) else []
    if devices == {"cpu"} and _cores() >= len(stages) * threads_of_a_half() and _fit(stages):
        return [Place()] * len(stages)
    return []


def _equal_gpus() -> list[str]:
    """All visible GPUs if they are of one model: on different ones results differ in the last digits."""
    count = torch.cuda.device_count()
    if len({torch.cuda.get_device_name(index) for index in range(count)}) != 1:
        return []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fit(stages: Sequence[BreakStage]) -> bool:
    """Whether this machine's memory, as far as it is free, is enough for all of them."""
    first = stages[0]
    settings = footprint.Settings(first.base_model, first.frame, {stage.name: stage.params for stage in stages}, {}, "cpu")
    needed = footprint.training_at_once(settings, list(settings.stages)).total
    free = available_memory()
    if needed > free:
        logger.info(
            "The breaks are trained one after the other: at once they need %.1f GiB of memory, and %.1f GiB are free",
            *(needed / footprint.GIB, free / footprint.GIB),
        )
    return needed <= free
