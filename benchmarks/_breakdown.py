"""Where the time of a step goes: operators by kind, and floating point operations against what the machine could do."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# The first kind whose word is in an operator's name, or in one of those that called it. Batched products occur in
# attention alone (and, in make, in the preconditioner).
_KINDS = {
    "convolution": ("conv",),
    "normalisation": ("group_norm", "groupnorm", "layer_norm", "layernorm"),
    "attention": ("scaled_dot_product", "scaleddotproduct", "flash", "softmax", "bmm"),
    "matrix product": ("mm", "linear", "matmul"),
}
OPTIMIZER, OTHER = "optimizer", "element by element, copies and other"


def kind_of(names: list[str]) -> str:
    """Of an operator, given its name and those of its callers from inside out."""
    if any(name.startswith("Optimizer.step") for name in names):
        return OPTIMIZER
    for name in names:
        for kind, words in _KINDS.items():
            if any(word in name.lower() for word in words):
                return kind
    return OTHER


def _callers(event: FunctionEvent) -> list[str]:
    names: list[str] = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def time_by_kind(step: Callable[[], object], device: str, steps: int) -> dict[str, float]:
    """Share of the operators' own time (on the GPU where there is one) by kind, summing to 1."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
    spent: Counter[str] = Counter()
    for event in profiler.events():
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if own > 0 and event.device_type == torch.autograd.DeviceType.CPU:  # a kernel's time is in its operator's, too
            spent[kind_of(_callers(event))] += own
    total = sum(spent.values())
    return {kind: time / total for kind, time in spent.most_common()}


def count_flops(step: Callable[[], object]) -> int:
    """Floating point operations of matrix products, convolutions and attention in a step, those of backward included."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
