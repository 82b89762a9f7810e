"""Ways to do one training step. Each class is set up by Settings and has `step()`, which does one optimizer step and returns
the losses, and `learnt()`, the parameters that it may move."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from benchmarks._models import Settings, encoded, family, load_text_encoders, load_unet, load_vae, pixels
from peft import LoraConfig
from torch import nn

from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.method.adapter import PEFT_NAME
from b4m_pipeline.method.frame import Frame
from b4m_pipeline.method.layers import PlpLayer, find_layers, inject, route_gradients
from b4m_pipeline.method.preservation import Preservation
from b4m_pipeline.method.riemannian import RiemannianPreconditioner
from b4m_pipeline.training.objectives import Objective
from b4m_pipeline.training.params import TrainParams
from b4m_pipeline.training.trainer import Trainer

RATE, COUNTERPART_RATE = 1e-4, 1e-5
DAMPING = 1e-2


class Way(Protocol):
    pictures: int
    """Seen in a step."""

    def step(self) -> list[float]: ...

    def learnt(self) -> list[nn.Parameter]: ...


def _plp_unet(settings: Settings, halves: str) -> tuple[nn.Module, dict[str, PlpLayer]]:
    unet = load_unet(settings)
    layers = find_layers(unet, list(settings.targets))
    frame = Frame(settings.seed, settings.rank, float(settings.rank), 0.5, "exact", 1.0, settings.size, layers)
    return unet, inject(unet, frame, halves)


def _lora_unet(settings: Settings) -> tuple[nn.Module, list[nn.Parameter], list[nn.Parameter]]:
    """A UNet with PEFT's LoRA of the same rank on the same layers, and all lora_A and all lora_B, in float32."""
    unet = load_unet(settings)
    layers = sorted(find_layers(unet, list(settings.targets)))
    config = LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=layers)
    unet.add_adapter(config, adapter_name=PEFT_NAME)
    modules = [unet.get_submodule(name) for name in layers]
    a, b = ([getattr(m, side)[PEFT_NAME].float().weight for m in modules] for side in ("lora_A", "lora_B"))
    return unet, a, b


def _trainer(
    settings: Settings,
    unet: nn.Module,
    objectives: list[Objective],
    pictures: int,
    route: Callable[[list[int]], None] | None = None,
) -> Trainer:
    """route: what routes the objectives' gradients when they go through the UNet together; None: one after another."""
    loss = DiffusionLoss(family(settings), unet, encoded(settings, unet, pictures))
    even = {"schedule": "constant", "noisy_bias": 1.0}
    params = TrainParams(steps=10**6, batch_size=1, learning_rate=RATE, precision=settings.precision, **even)
    joint = partial(loss.joint_loss, before=route) if route else None
    return Trainer(loss, objectives, params, settings.seed, "", settings.device, joint)


class _Trained:
    """A step of the project's own trainer."""

    precondition: Callable[[], None] | None = None
    trainer: Trainer
    pictures: int

    def step(self) -> list[float]:
        entry = self.trainer.train_step(self.precondition)
        return [value for key, value in entry.items() if key.startswith("loss_")]

    def learnt(self) -> list[nn.Parameter]:
        return [parameter for objective in self.trainer.objectives for parameter in objective.parameters]


def break_objectives(batch: int, counterparts: int, own: list, other: list, penalty=None) -> list[Objective]:
    """As `stages.BreakStage` makes them: one for the concept and its half, one for all counterparts and the other half. batch,
    counterparts: so many pictures of either in a step."""
    rows = torch.arange(batch + counterparts)
    objectives = [Objective("concept", own, [rows[:batch]], batch, RATE, penalty)]
    if counterparts:
        objectives.append(Objective("counterparts", other, [rows[batch:]], counterparts, COUNTERPART_RATE))
    return objectives


class Ours(_Trained):
    """A step of a break as `stages.BreakStage` does it: latents and prompts from the cache, one batch for the concept and one
    for all counterparts, in one pass or in two, gradients for the half that each loss teaches and for nothing else."""

    def __init__(self, settings: Settings, counterparts: int | None = None, preserving: bool = False, one_pass: bool = True):
        counterparts = settings.counterparts if counterparts is None else counterparts
        self.pictures = settings.batch * (1 + counterparts)
        penalty, inputs = None, None
        if preserving:
            plain = load_unet(settings)
            prompts = {k: v for k, v in encoded(settings, plain, 96).items() if not k.startswith("latents")}
            inputs = family(settings).prompt_inputs(plain, prompts)
            del plain
        unet, self.layers = _plp_unet(settings, settings.halves)
        if inputs:
            penalty = Preservation(self.layers, inputs, 0.1)
        own, other = [layer.a for layer in self.layers.values()], [layer.b for layer in self.layers.values()]
        objectives = break_objectives(settings.batch, settings.batch * counterparts, own, other, penalty)
        route = partial(route_gradients, self.layers, ("lora_A", "lora_B")) if one_pass and counterparts else None
        self.trainer = _trainer(settings, unet, objectives, self.pictures, route)


class PlainFactors(_Trained):
    """Our step with an ordinary LoRA of the same rank in place of the partly learnable one."""

    def __init__(self, settings: Settings):
        self.pictures = settings.pictures
        unet, own, other = _lora_unet(settings)
        objectives = break_objectives(settings.batch, settings.batch * settings.counterparts, own, other)
        self.trainer = _trainer(settings, unet, objectives, self.pictures)


class Make(_Trained):
    """A step of make: both halves on `batch` pictures of the content and as many of the style."""

    def __init__(self, settings: Settings):
        self.pictures = 2 * settings.batch
        unet, self.layers = _plp_unet(settings, "free")
        whole = [layer.a for layer in self.layers.values()] + [layer.b for layer in self.layers.values()]
        rows = torch.arange(self.pictures)
        strata = [rows[: settings.batch], rows[settings.batch :]]
        self.trainer = _trainer(settings, unet, [Objective("make", whole, strata, self.pictures, RATE)], self.pictures)
        self.precondition = RiemannianPreconditioner(self.layers, DAMPING)

    def step_by_adamw(self) -> None:
        """The same without the preconditioner."""
        self.trainer.train_step(None)


class PlainLora:
    """A step of diffusers' LoRA examples with cached latents: one batch, PEFT's LoRA, AdamW on all of it."""

    def __init__(self, settings: Settings):
        self.settings, self.pictures = settings, settings.pictures
        unet, a, b = _lora_unet(settings)
        self.parameters = a + b
        self.loss = DiffusionLoss(family(settings), unet, encoded(settings, unet, self.pictures))
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.01)
        self.index = 0

    def step(self) -> list[float]:
        s = self.settings
        with torch.autocast(s.device, s.torch_dtype, enabled=s.dtype != "float32"):
            loss = self.loss(torch.arange(self.pictures), torch_generator(s.seed, self.index)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.index += 1
        return [loss.item()]

    def learnt(self) -> list[nn.Parameter]:
        return self.parameters


def _mask(factor: nn.Parameter, dim: int) -> torch.Tensor:
    """0 for the first half along `dim`, 1 for the rest; of one element along the other."""
    mask = torch.ones(factor.shape[dim], device=factor.device)
    mask[: factor.shape[dim] // 2] = 0
    return mask.unsqueeze(1 - dim)


class Released:
    """The work of one iteration of the released training script, written anew from what that script does (train_content.py with
    --multi_style): a model of its cost, in which the LoRA layers, the noise and the loss are ours. A line for each cost:

    - VAE: every picture is encoded again in every iteration, in float32, one at a time by loader.
    - Text encoders: run once before training, but names keep them alive, so they stay in memory beside the UNet.
    - Four forward passes of the UNet, one after another: concept, then three counterparts.
    - `retain_graph=True` on the concept's backward: its activations stay until the next iteration's take their place.
    - The counterparts' three losses are summed, so all three graphs are alive at once.
    - Both backward passes give full gradients of both factors. The frozen halves are parts of the parameters: a hook multiplies
      each gradient by a mask.
    - Two AdamW, one for each factor, frozen halves included. Each steps and zeroes its own factor alone, so what a loss leaves
      in the other's gradients is added to.

    Left out, in its favour: reading and augmenting pictures, gradient accumulation over four iterations (all ways here step in
    each), and number formats: its command trains the UNet in float32, here it has the format of all others.
    """

    def __init__(self, settings: Settings):
        if settings.counterparts < 1:
            raise ValueError(f"the released way needs a counterpart at least, got {settings.counterparts}")
        self.settings, self.pictures = settings, settings.pictures
        self.vae = load_vae(settings)
        self.text_encoders = load_text_encoders(settings)
        self.unet, downs, ups = _lora_unet(settings)
        for factors, dim in ((downs, 1), (ups, 0)):
            for factor in factors:
                factor.register_hook(partial(torch.mul, _mask(factor, dim)))
        self.groups = (downs, ups)
        self.optimizers = [
            torch.optim.AdamW(group, lr=rate, weight_decay=0.01)
            for group, rate in zip(self.groups, (RATE, COUNTERPART_RATE), strict=True)
        ]
        self.family = family(settings)
        self.schedule = self.family.load_noise_schedule().scheduler
        self.pixels = pixels(settings, self.pictures)
        prompts = encoded(settings, self.unet, self.pictures)
        keys = [key for key in prompts if not key.startswith("latents")]
        self.prompts = {key: prompts[key].to(settings.device, settings.torch_dtype) for key in keys}

    def _latents(self, index: int) -> torch.Tensor:
        """Of the index-th loader's batch, (B, C, h, w) float32."""
        rows = slice(index * self.settings.batch, (index + 1) * self.settings.batch)
        with torch.no_grad():  # the script does without, but no parameter here has a gradient
            return self.vae.encode(self.pixels[rows]).latent_dist.sample() * self.vae.config.scaling_factor

    def _loss(self, latents: torch.Tensor, index: int, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        s = self.settings
        noisy = self.schedule.add_noise(latents, noise, timesteps).to(s.torch_dtype)
        rows = slice(index * s.batch, (index + 1) * s.batch)
        conditions = self.family.conditions({key: value[rows] for key, value in self.prompts.items()})
        with torch.autocast(s.device, s.torch_dtype, enabled=s.dtype != "float32"):
            prediction = self.unet(noisy, timesteps, **conditions).sample
        velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latents, noise, timesteps) if velocity else noise
        return F.mse_loss(prediction.float(), target)

    def _update(self, index: int) -> None:
        nn.utils.clip_grad_norm_(self.groups[index], 1.0)
        self.optimizers[index].step()
        self.optimizers[index].zero_grad()

    def step(self) -> list[float]:
        latents = self._latents(0)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.schedule.config.num_train_timesteps, (len(latents),), device=latents.device)
        self.concept_loss = self._loss(latents, 0, noise, timesteps)  # an attribute, as it outlives the iteration there
        self.concept_loss.backward(retain_graph=True)
        self._update(0)
        others = range(1, 1 + self.settings.counterparts)
        batches = [self._latents(index) for index in others]
        losses = [self._loss(latents, index, noise, timesteps) for latents, index in zip(batches, others, strict=True)]
        counterpart_loss = sum(losses) / len(losses)
        counterpart_loss.backward()
        self._update(1)
        return [self.concept_loss.item(), counterpart_loss.item()]

    def learnt(self) -> list[nn.Parameter]:
        return [*self.groups[0], *self.groups[1]]


def in_turn(settings: Settings) -> Ours:
    """Ours with one counterpart's batch a step, in turn, as conf/sdxl and conf/sd15 have it."""
    return Ours(settings, counterparts=1)


WAYS: dict[str, Callable[[Settings], Way]] = {
    "ours": Ours,
    "ours, two passes": partial(Ours, one_pass=False),
    "ours, counterparts in turn": in_turn,
    "released": Released,
    "plain LoRA": PlainLora,
}
