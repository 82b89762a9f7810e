"""What the families of rectified flow share: the objective, how the scheduler shifts it, and latents as rows of patches."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from b4m_pipeline.diffusion.families.base import Family
from b4m_pipeline.diffusion.families.noise import FlowSchedule


class FlowFamily(Family):
    """Base models of rectified flow, which denoise with a transformer."""

    denoiser_name = "transformer"
    gpu_dtype = torch.bfloat16
    patch: int = 2
    """Latents a side that the transformer reads as one token."""

    def load_noise_schedule(self) -> FlowSchedule:
        return FlowSchedule(self.source.config(FlowMatchEulerDiscreteScheduler, "scheduler"))

    def side_multiple(self) -> int:
        return self.vae_factor() * self.patch

    def timestep_shift(self, size: tuple[int, int] | None = None) -> float:
        config = self.load_noise_schedule().config
        if not config["use_dynamic_shifting"]:
            return config["shift"]
        height, width = size or (self.params.resolution,) * 2
        mu = self._mu(height * width // self.side_multiple() ** 2, config)
        return mu if config["time_shift_type"] == "linear" else math.exp(mu)

    def _mu(self, tokens: int, config: dict[str, Any]) -> float:
        """What the pipeline tells the scheduler for images of so many tokens."""
        bounds = (config[key] for key in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"))
        return calculate_shift(tokens, *bounds)

    @classmethod
    def timestep_of_call(cls, given: torch.Tensor) -> torch.Tensor:
        return 1000 * given  # most pipelines count from 0 to 1


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, h/2 w/2, 4 C): patches of 2 x 2, row by row."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: torch.Tensor, height: int) -> torch.Tensor:
    """What was packed (B, h/2 w/2, 4 C) -> (B, C, h, w). height: h."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, -1)), 2)


def places(height: int, width: int, axes: int, device: torch.device) -> torch.Tensor:
    """Row and column of each of height x width tokens, row by row, as the second and third of so many axes; the others are 0.
    (height width, axes)."""
    ids = torch.zeros(height, width, axes, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)
    return ids.flatten(0, 1)
