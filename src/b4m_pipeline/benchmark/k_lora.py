"""K-LoRA: a way to draw with two LoRAs, not an adapter."""

from typing import Any

import torch
from diffusers import DiffusionPipeline

from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.diffusion.families import denoiser_of, family_of
from b4m_pipeline.diffusion.sampling import put_on
from b4m_pipeline.method.adapter import Adapter


class KLora:
    """K-LoRA (Ouyang et al. 2025, arXiv 2502.18461): in each layer and at each denoising step either content's LoRA acts or
    style's does.

    It is content's if S_c / gamma > S_s (alpha t + beta). S: sum of the K largest absolute entries of dW, K the product of
    both ranks (all entries, if there are fewer); gamma: mean over the layers of the ratio of the sums of all absolute entries;
    t: the share of the steps that are done. So style takes over more layers from step to step.
    """

    def __init__(self, content: Adapter, style: Adapter, alpha: float, beta: float):
        self.parts = {"content": content, "style": style}
        self.alpha, self.beta = alpha, beta
        most, tops, ratios = content.rank * style.rank, {}, []
        for module in content.modules():
            own, other = (part.delta(module).abs().flatten() for part in (content, style))
            tops[module] = [float(torch.topk(entries, min(most, len(entries))).values.sum()) for entries in (own, other)]
            ratios.append(float(own.sum() / other.sum().clamp(min=1e-12)))
        gamma = max(sum(ratios) / len(ratios), 1e-12)
        self.limits = {module: own / (gamma * max(other, 1e-12)) for module, (own, other) in tops.items()}
        """For each layer the value of alpha t + beta from which on style's LoRA acts."""

    def choice(self, module: str, done: float) -> str:
        """Whose LoRA acts in this layer. done: share of the steps that are done, 0 to 1."""
        return "content" if self.limits[module] > self.alpha * done + self.beta else "style"

    def put_on(self, pipeline: DiffusionPipeline) -> None:
        """Load both LoRAs, and choose anew whenever the denoiser is called."""
        for name, part in self.parts.items():
            put_on(pipeline, part, name)
        denoiser, family = denoiser_of(pipeline), family_of(pipeline)
        layers = {module: denoiser.get_submodule(module) for module in self.limits}

        def choose(_: torch.nn.Module, given: tuple, named: dict[str, Any]) -> None:
            told, steps = named["timestep"] if "timestep" in named else given[1], pipeline.scheduler.timesteps
            timestep = family.timestep_of_call(told.flatten()[:1])
            done = int((steps - timestep).abs().argmin()) / len(steps)
            for module, layer in layers.items():
                layer.set_adapter(self.choice(module, done))

        denoiser.register_forward_pre_hook(choose, with_kwargs=True)


def k_lora(task: Task) -> KLora:
    """The two plain LoRAs that all merges start from, drawn with by `KLora`."""
    own = task.competitors
    return KLora(task.lora("content"), task.lora("style"), own.k_lora_alpha, own.k_lora_beta)
