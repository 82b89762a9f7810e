"""How noise is added to latents and what a denoiser learns to say of it: DDPM (the noise, or v) and rectified flow."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from b4m_pipeline.diffusion.families.identity import BaseModelError

Weigh = Callable[[torch.Tensor], torch.Tensor]
"""Timesteps (B,) -> the weights of their losses (B,)."""


class ObjectiveError(ValueError):
    """A training parameter that means nothing for the base model's objective."""


@dataclass(frozen=True)
class TimestepSampling:
    """How training draws times in [0, 1], 1 being pure noise. bias: more than 1 draws more of the noisy ones. shift: the
    pictures' noise is raised as a scheduler does it, t -> a t / (1 + (a - 1) t); auto: by the base model's own a for the
    pictures' size."""

    bias: float = 1.0
    distribution: Literal["uniform", "logit_normal"] = "uniform"
    shift: float | Literal["auto"] | None = None

    def draw(self, uniform: torch.Tensor, shift: float = 1.0) -> torch.Tensor:
        """Numbers in [0, 1) (B,) -> times (B,). shift: a, where it is known by now."""
        times = uniform ** (1 / self.bias)
        if self.distribution == "logit_normal":  # sigmoid of a normal number (Esser et al. 2024, arXiv 2403.03206)
            times = torch.special.ndtri(times).sigmoid()
        return times if shift == 1 else shift * times / (1 + (shift - 1) * times)


class NoiseSchedule(ABC):
    """The training objective of a base model."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.steps: int = config["num_train_timesteps"]

    @abstractmethod
    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        """Times (B,) in [0, 1], 1 being pure noise -> timesteps (B,) of 0 to `steps`."""

    @abstractmethod
    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents, and what the denoiser should say of them, (B, C, h, w) each."""

    @abstractmethod
    def weigh(self, min_snr_gamma: float | None, device: torch.device) -> Weigh:
        """What losses are weighed by."""

    @abstractmethod
    def require(self, min_snr_gamma: float | None, noise_offset: float, sampling: TimestepSampling, prefix: str = "") -> None:
        """Raise ObjectiveError, naming the first of these training parameters that means nothing here. prefix: of their
        names, "make."."""


class DdpmSchedule(NoiseSchedule):
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise at whole timesteps (Ho et al. 2020, arXiv 2006.11239); learnt is the noise, or
    v (Salimans and Ho 2022, arXiv 2202.00512)."""

    def __init__(self, config: dict[str, Any]):
        self.scheduler = DDPMScheduler.from_config(config)
        super().__init__(self.scheduler.config)
        if (kind := self.config["prediction_type"]) not in ("epsilon", "v_prediction"):
            raise BaseModelError(f"prediction type {kind} is not supported: epsilon and v_prediction are")
        self.velocity = kind == "v_prediction"

    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        return (self.steps * times).long().clamp(max=self.steps - 1)

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        target = self.scheduler.get_velocity(latents, noise, timesteps) if self.velocity else noise
        return self.scheduler.add_noise(latents, noise, timesteps), target

    def weigh(self, min_snr_gamma: float | None, device: torch.device) -> Weigh:
        weights = torch.ones(self.steps)
        if min_snr_gamma is not None:
            alphas = self.scheduler.alphas_cumprod.double()
            snr = (alphas / (1 - alphas)).clamp(min=1e-8)
            # What the error of x_0 is divided by when it is said as one of noise, or of velocity.
            own = snr + 1 if self.velocity else snr
            weights = (snr.clamp(max=min_snr_gamma) / own).float()
        weights = weights.to(device)
        return lambda timesteps: weights[timesteps]

    def require(self, min_snr_gamma: float | None, noise_offset: float, sampling: TimestepSampling, prefix: str = "") -> None:
        if sampling.shift == "auto":
            raise ObjectiveError(
                f"{prefix}timestep_shift: auto is for base models of rectified flow, whose schedulers shift by the pictures' "
                "size; this one's does not: use null"
            )


class FlowSchedule(NoiseSchedule):
    """Rectified flow (Liu et al. 2022, arXiv 2209.03003): x_t = (1 - s) x_0 + s noise, learnt is noise - x_0. Timesteps are
    1000 s, and need not be whole."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(FlowMatchEulerDiscreteScheduler.from_config(config).config)

    def timesteps(self, times: torch.Tensor) -> torch.Tensor:
        return self.steps * times

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        share = (timesteps / self.steps).to(latents.dtype).view(-1, 1, 1, 1)
        return (1 - share) * latents + share * noise, noise - latents

    def weigh(self, min_snr_gamma: float | None, device: torch.device) -> Weigh:
        return torch.ones_like

    def require(self, min_snr_gamma: float | None, noise_offset: float, sampling: TimestepSampling, prefix: str = "") -> None:
        if min_snr_gamma is not None:
            raise ObjectiveError(
                f"{prefix}min_snr_gamma is {min_snr_gamma}, and the base model is one of rectified flow, which has no such "
                "weights: set it to null, and see timestep_sampling"
            )
        if noise_offset:
            raise ObjectiveError(
                f"{prefix}noise_offset is {noise_offset}, and the base model is one of rectified flow, which starts from pure "
                "noise and needs none: set it to 0"
            )
