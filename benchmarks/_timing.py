"""Timing by interleaved rounds, and what can be said of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from benchmarks._hardware import synchronize

DRAWS = 10_000


def time_rounds(
    steps: dict[str, Callable[[], object]], device: str, rounds: int, steps_per_round: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds a step in each round. All take turns within a round (A B C, A B C, ...), so that whatever slows the machine for a
    while slows all of them; the first `warm_up` rounds are not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(warm_up + rounds):
        for name, step in steps.items():
            synchronize(device)
            begun = time.perf_counter()
            for _ in range(steps_per_round):
                step()
            synchronize(device)
            if index >= warm_up:
                seconds[name].append((time.perf_counter() - begun) / steps_per_round)
    return seconds


@dataclass(frozen=True)
class Estimate:
    """A median over rounds and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def percent(self) -> str:
        return f"{self.median:.1%} [{self.low:.1%}, {self.high:.1%}]"


def estimate(values: list[float], seed: int = 0) -> Estimate:
    """Median, with the percentile bootstrap of the median over the values."""
    array = np.asarray(values, dtype=float)
    draws = np.random.default_rng(seed).integers(len(array), size=(DRAWS, len(array)))
    low, high = np.percentile(np.median(array[draws], axis=1), [2.5, 97.5])
    return Estimate(float(np.median(array)), float(low), float(high))


def paired_ratio(slower: list[float], faster: list[float]) -> Estimate:
    """How many times as long `slower` takes, from the ratio of each round. Raises ValueError if the rounds do not pair."""
    return estimate([s / f for s, f in zip(slower, faster, strict=True)])


def paired_share(whole: list[float], without: list[float]) -> Estimate:
    """Which share of `whole` is saved where a part is left out; below zero where nothing is. Raises ValueError as above."""
    return estimate([1 - f / s for s, f in zip(whole, without, strict=True)])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
