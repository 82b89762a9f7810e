"""What need not be computed in each denoising step while images are drawn: layers that read nothing but the prompt, and steps
whose result is not used."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Held:
    """A layer's forward that gives its last output again for the very same input tensor. The output is the same to the bit."""

    def __init__(self, module: torch.nn.Module):
        self.module, self.forward = module, module.forward
        self.given: torch.Tensor | None = None
        self.adapters: Any = None
        self.output: Any = None

    def __call__(self, given: torch.Tensor, *others: Any, **named: Any) -> Any:
        adapters = getattr(self.module, "active_adapters", None)  # a way to draw may change them from step to step
        if others or named or given is not self.given or adapters != self.adapters:
            self.output, self.given, self.adapters = self.forward(given, *others, **named), given, adapters
            if others or named:
                self.given = None
        return self.output


@contextmanager
def held(denoiser: torch.nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Within, each of these layers is computed when its input is another tensor than the last time, and only then. Weights and
    inputs must not be changed in place meanwhile. Layers whose forward somebody else has replaced, to move their weights, are
    left alone."""
    modules = [module for name in layers if "forward" not in vars(module := denoiser.get_submodule(name))]
    for module in modules:
        module.forward = _Held(module)  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


@contextmanager
def skipping(denoiser: torch.nn.Module, lost: Callable[[], bool]) -> Iterator[None]:
    """Within, the denoiser gives its last output again as long as `lost` says that nobody will use it. A denoiser whose forward
    somebody else has replaced is left alone."""
    if "forward" in vars(denoiser):
        yield
        return
    forward, last = denoiser.forward, None

    def skip(*given: Any, **named: Any) -> Any:
        nonlocal last
        if last is None or not lost():
            last = forward(*given, **named)
        return last

    denoiser.forward = skip  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(denoiser).pop("forward", None)
