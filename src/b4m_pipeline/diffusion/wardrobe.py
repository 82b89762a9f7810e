"""Several adapters of one base model held on one pipeline: another one is switched to, the base model stays where it is."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from b4m_pipeline.diffusion.families import denoiser_of
from b4m_pipeline.diffusion.sampling import put_on
from b4m_pipeline.method.adapter import PEFT_NAME, Adapter
from b4m_pipeline.method.combine import with_strengths

MOST_ADAPTERS = 16
MOST_BYTES = 2**30
"""Of the held adapters' weights in float32; they are kept once on the pipeline, in its number format, and once in the main
memory. One adapter is held whatever it needs."""


@dataclass
class _Held:
    """name: PEFT's; strengths: of content and style that its weights have on the pipeline, None while they are written."""

    name: str
    adapter: Adapter
    strengths: tuple[float, float] | None


class Wardrobe:
    """Which adapters a pipeline has on, of which one is active; those that were not used for longest are given up first."""

    def __init__(self, pipeline: DiffusionPipeline, most: int = MOST_ADAPTERS, most_bytes: int = MOST_BYTES):
        """pipeline: without adapters; nobody else may put any on it."""
        self.pipeline = pipeline
        self._most, self._most_bytes = most, most_bytes
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._numbers = itertools.count()
        self._active: str | None = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def wear(self, key: Hashable, fetch: Callable[[], Adapter], content: float = 1.0, style: float = 1.0) -> Adapter:
        """Make an adapter the pipeline's only active one, with these strengths; returns it as it is without. key: what it is
        held under; fetch: where it comes from, if it is not held. The images are those of an adapter that is put on alone.
        Raises as `with_strengths` and `fetch` do."""
        strengths = content, style
        if (held := self._held.get(key)) is None:
            held = self._put_on(key, fetch(), strengths)
        elif held.strengths != strengths:
            scaled = with_strengths(held.adapter, content, style)
            held.strengths = None  # of what is half written, should this be interrupted
            self._write(held.name, scaled)
            held.strengths = strengths
        self._held.move_to_end(key)
        if self._active != held.name:
            self._active = None
            self.pipeline.set_adapters(held.name)
            self._active = held.name
        return held.adapter

    def _put_on(self, key: Hashable, adapter: Adapter, strengths: tuple[float, float]) -> _Held:
        scaled, held = with_strengths(adapter, *strengths), _Held(f"{PEFT_NAME}_{next(self._numbers)}", adapter, strengths)
        while self._held and self._is_full(_size(adapter)):
            _, oldest = self._held.popitem(last=False)
            self.pipeline.delete_adapters(oldest.name)
        self._active = None
        put_on(self.pipeline, scaled, held.name)
        self._held[key] = held
        return held

    def _is_full(self, size: int) -> bool:
        return (
            len(self._held) >= self._most or size + sum(_size(held.adapter) for held in self._held.values()) > self._most_bytes
        )

    @torch.no_grad()
    def _write(self, name: str, adapter: Adapter) -> None:
        """An adapter's tensors over those that are held under the name."""
        denoiser = denoiser_of(self.pipeline)
        for key, tensor in adapter.tensors.items():
            module, side, _ = key.rsplit(".", 2)
            getattr(denoiser.get_submodule(module), side)[name].weight.copy_(tensor)


def _size(adapter: Adapter) -> int:
    return sum(tensor.nbytes for tensor in adapter.tensors.values())
