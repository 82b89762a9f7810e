"""What memory each stage needs, and which settings need less."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from b4m_pipeline.common.memory import device_memory
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.families.offload import pictures_at_once
from b4m_pipeline.diffusion.footprint import (
    activations,
    denoiser_bytes,
    drawing,
    encoder_bytes,
    layer_sizes,
    number_format,
    vae_bytes,
)
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams, MakeParams, TrainParams

GIB = 2**30
RESERVE = GIB // 2
"""Bytes for libraries, kernels' workspaces and what is between tensors."""
SHARE = 0.2
"""Of activations, for the float32 copies of autocast and what kernels need."""
_STATES = {"adamw": 2.0, "adamw8bit": 0.5, "prodigy": 4.0}
"""Numbers of the optimizer's state for each learnable one, in float32."""


AT_ONCE = ", at once"
"""Ends the name of what is several trainings; where they do not fit, they are done one after the other."""


class MemoryShortageError(ValueError):
    """The weights alone are more than the GPU's memory."""


@dataclass(frozen=True)
class Need:
    """Bytes that a stage needs at its peak."""

    stage: str
    weights: int
    adapter: int
    activations: int
    processes: int = 1

    @property
    def total(self) -> int:
        return self.weights + self.adapter + round((1 + SHARE) * self.activations) + self.processes * RESERVE


@dataclass(frozen=True)
class Settings:
    """The parameters that memory follows from. stages: content_break, style_break, make and the like; drawn: batch size and
    resolution of what draws, by name."""

    base: BaseModelParams
    frame: FrameParams
    stages: dict[str, TrainParams]
    drawn: dict[str, tuple[int, int]]
    device: str

    @classmethod
    def of(cls, parameters: dict[str, Any], device: str) -> "Settings":
        """parameters: typed, as `prerequisites.check_parameters` gives them."""
        base = parameters["base_model"]
        drawn = {name: (parameters[name].batch_size, base.resolution) for name in ("evaluation", "generate")}
        counterparts = parameters["counterparts"]
        if counterparts.source == "drawn":
            own = counterparts.drawn
            drawn["counterparts"] = (own.batch_size, own.resolution or base.resolution)
        stages = {name: parameters[name] for name in ("content_break", "style_break", "make")}
        return cls(base, parameters["frame"], stages, drawn, device)

    def with_base(self, **changes: Any) -> "Settings":
        return Settings(self.base.model_copy(update=changes), self.frame, self.stages, self.drawn, self.device)

    def with_stages(self, **changes: Any) -> "Settings":
        """Those of the changes that a stage has."""
        stages = {
            name: own.model_copy(update={key: value for key, value in changes.items() if key in type(own).model_fields})
            for name, own in self.stages.items()
        }
        return Settings(self.base, self.frame, stages, self.drawn, self.device)

    def with_drawn(self, batch: int) -> "Settings":
        drawn = {name: (min(batch, own), size) for name, (own, size) in self.drawn.items()}
        return Settings(self.base, self.frame, self.stages, drawn, self.device)


REMEDIES: dict[str, Callable[[Settings], Settings]] = {
    "gradient_checkpointing: true": lambda own: own.with_stages(gradient_checkpointing=True),
    "one_pass: false": lambda own: own.with_stages(one_pass=False),
    "batch_size: 1": lambda own: own.with_stages(batch_size=1, counterpart_batch_size=1).with_drawn(1),
    "base_model.offload: model": lambda own: own.with_base(offload="model"),
    "base_model.quantization: nf4": lambda own: own.with_base(quantization="nf4"),
    "base_model.resolution: 512": lambda own: own.with_base(resolution=min(512, own.base.resolution)),
    "base_model.offload: group": lambda own: own.with_base(offload="group", quantization=None),
}
"""Settings that need less, those that cost least first."""


def encoding_prompts(own: Settings) -> Need:
    """Text encoders, and nothing of the rest."""
    weights = encoder_bytes(own.base, own.device)
    together = own.base.offload is None or own.device != "cuda"
    return Need("encode prompts", sum(weights) if together else max(weights), 0, 0)


def encoding_pictures(own: Settings) -> Need:
    """The VAE in float32, on as many pictures as it encodes at once."""
    family = load_family(own.base)
    vae = family.empty_vae()
    weights = sum(weight.numel() for weight in vae.parameters()) * 4
    return Need(
        "encode pictures",
        weights,
        0,
        vae_bytes(
            family, vae.encoder, pictures_at_once(own.base.resolution, own.base.resolution), torch.float32, decoding=False
        ),
    )


def training(own: Settings, name: str) -> Need:
    """The denoiser, the adapter in float32, its gradients and the optimizer's state, and the activations of one pass."""
    params = own.stages[name]
    adapter = _adapter(own, params)
    batch = params.batch_size
    if isinstance(params, BreakParams):
        other = params.counterpart_batch_size
        batch = batch + other if params.one_pass else max(batch, other)
    dtype = number_format(params.precision, own.device)
    targets, rank, checkpointed = tuple(own.frame.targets), own.frame.rank, params.gradient_checkpointing
    needed = activations(own.base, targets, rank, batch, dtype, own.device, checkpointed)
    return Need(name, _frozen(own, params), adapter, needed)


def training_at_once(own: Settings, names: Sequence[str]) -> Need:
    """Several of them, each in a process of its own, in this machine's memory."""
    found = [training(own, name) for name in names]
    weights, adapter, needed = (sum(getattr(need, part) for need in found) for part in ("weights", "adapter", "activations"))
    return Need(" and ".join(names) + AT_ONCE, weights, adapter, needed, len(found))


def _frozen(own: Settings, params: TrainParams) -> int:
    return denoiser_bytes(own.base, number_format(params.precision, own.device))


def _adapter(own: Settings, params: TrainParams) -> int:
    sizes = layer_sizes(own.base.model_copy(update={"quantization": None}), tuple(own.frame.targets))
    whole = sum(4 * own.frame.rank * (outputs + inputs) for outputs, inputs in sizes)
    learnt = (1 - own.frame.split) * whole
    if own.frame.halves == "orthogonal" and not isinstance(params, MakeParams):
        learnt /= 2  # each half is confined to half of the rank
    states = _STATES[params.optimizer.removeprefix("riemannian_")] + (1 if params.ema_decay else 0)
    return round(whole + (1 + states) * learnt)


def drawing_images(own: Settings, name: str) -> Need:
    """The whole model, or the part of it that is on the GPU at once."""
    batch, resolution = own.drawn[name]
    offload = own.base.offload if own.device == "cuda" else None
    found = drawing(own.base.model_copy(update={"resolution": resolution, "offload": offload}), batch, own.device)
    return Need(f"draw ({name})", found.total(offload) - found.working, 0, found.working)


def needs(own: Settings) -> Iterator[Need]:
    """Of all stages, one after another, as each is known."""
    yield encoding_prompts(own)
    yield encoding_pictures(own)
    for name in own.stages:
        yield training(own, name)
    if own.device == "cpu":
        yield training_at_once(own, ["content_break", "style_break"])
    for name in own.drawn:
        yield drawing_images(own, name)


def _again(own: Settings, stage: str) -> Need:
    """The stage's need under other settings."""
    if stage == "encode prompts":
        return encoding_prompts(own)
    if stage == "encode pictures":
        return encoding_pictures(own)
    if stage in own.stages:
        return training(own, stage)
    return drawing_images(own, stage.removeprefix("draw (").removesuffix(")"))


def remedy(own: Settings, need: Need, memory: int) -> list[str]:
    """The fewest settings, of those that cost least, that bring a stage's need under so many bytes; [] if none do."""
    taken: list[str] = []
    least, changed = need.total, own
    for name, change in REMEDIES.items():
        if (alone := _again(change(own), need.stage).total) <= memory:
            return [name]
        if name.endswith("group"):
            continue  # not beside others
        tried = _again(change(changed), need.stage).total
        if tried < least and alone < need.total:
            taken, least, changed = [*taken, name], tried, change(changed)
            if least <= memory:
                return taken
    return []


HEADER = "| stage | weights | adapter | activations | in all, GiB | fits |\n|---|---|---|---|---|---|"
"""Of the table whose rows `report` gives."""


def report(own: Settings, memory: int) -> Iterator[str]:
    """A row of a Markdown table for each stage, in GiB; memory: bytes to compare with. What does not fit has the settings with
    which it would."""
    for need in needs(own):
        parts = (need.weights, need.adapter, need.activations, need.total)
        if need.total <= memory:
            said = "yes"
        elif need.stage.endswith(AT_ONCE):
            said = "no; they are trained one after the other"
        else:
            helps = remedy(own, need, memory)
            said = f"no; with {', '.join(helps)}" if helps else "no"
        yield f"| {need.stage} | {' | '.join(f'{part / GIB:.2f}' for part in parts)} | {said} |"


def check_weights(
    parameters: dict[str, Any], stages: list[str], device: str, presets: Callable[[], dict[int, dict[str, Any]]] = dict
) -> None:
    """Raise MemoryShortageError, naming what helps, if the weights that one of these stages holds are by themselves more than
    the GPU's whole memory. On a CPU memory can be swapped: there it is not checked. presets: parameters by GB of memory."""
    if device != "cuda":
        return
    memory = device_memory(device)
    own = Settings.of(parameters, device)
    for name in stages:
        held = _held(own, name)
        if held <= memory:
            continue
        sizes = {size: Settings.of(given, device) for size, given in presets().items() if size <= math.ceil(memory / GIB)}
        if fitting := [size for size, given in sizes.items() if _held(given, name) <= memory]:
            what = f"use this environment's settings for it, --params=memory={max(fitting)}"
        elif _held(own.with_base(quantization="nf4"), name) <= memory:
            what = "set base_model.quantization: nf4"
        else:
            what = "even in 4 bits it does not fit: use a smaller base model"
        raise MemoryShortageError(
            f"{name} holds {held / GIB:.1f} GiB of weights, and the GPU has {memory / GIB:.1f} GiB: {what}. `kedro memory` "
            "says what each stage needs"
        )


def _held(own: Settings, name: str) -> int:
    """Bytes of the weights that a training stage holds throughout."""
    return _frozen(own, own.stages[name]) + _adapter(own, own.stages[name])
