"""What the families with a UNet share: DDPM's objective and cross-attention."""

from abc import abstractmethod
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTokenizer

from b4m_pipeline.diffusion.families.base import Family
from b4m_pipeline.diffusion.families.noise import DdpmSchedule
from b4m_pipeline.diffusion.families.prompts import Prompts


class UNetFamily(Family):
    """Base models that denoise with a UNet."""

    denoiser_name = "unet"
    denoiser_class = UNet2DConditionModel
    tokenizer_class = CLIPTokenizer
    gpu_dtype = torch.float16

    def arrange(self, denoiser: UNet2DConditionModel, device: str) -> UNet2DConditionModel:
        if device == "cpu":
            denoiser.set_attn_processor(AttnProcessor())  # its backward is faster than the flash kernel's there
        return denoiser

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (self.token_limit(self.load_tokenizer()), self.denoiser_config()["cross_attention_dim"])}

    def load_noise_schedule(self) -> DdpmSchedule:
        """With the base model's betas and prediction type."""
        return DdpmSchedule(self.source.config(DDPMScheduler, "scheduler"))

    def predict(
        self,
        denoiser: Any,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: Prompts,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        return denoiser(latents, timesteps, **self.conditions(prompts, size)).sample

    @abstractmethod
    def conditions(self, prompts: Prompts, size: tuple[int, int] | None = None) -> dict:
        """Keyword arguments of the UNet for a batch of encoded prompts. size: height and width of the pictures in pixels, if
        they are no squares of the base's resolution."""


def cross_attention_layers(unet: torch.nn.Module) -> list[str]:
    """Keys and values of cross-attention. All read one and the same: the encoded tokens."""
    return [name for name, _ in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))]
