"""Learning-rate schedules, as factors on the highest rate."""

import math


def warm_up(step: int, warmup_steps: int) -> float:
    """Linear from 1 / warmup_steps to 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def warm_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, and over all steps a cosine from one to zero."""
    return warm_up(step, warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / steps))
