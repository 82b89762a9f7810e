"""Stable Diffusion 1.x and 2.x."""

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from b4m_pipeline.diffusion.families.base import Family, cross_attention_layers


class StableDiffusion(Family):
    """SD 1.x and 2.x: one text encoder, no further conditions."""

    pipeline_class = StableDiffusionPipeline
    _unused_parts = ("safety_checker", "feature_extractor")

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, torch.Tensor]:
        embeds, _ = pipeline.encode_prompt(prompts, device, 1, False)
        return {"prompt_embeds": embeds.cpu()}

    @torch.no_grad()
    def encode_guided(self, prompts: list[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        embeds, negative = self._text_pipeline(device).encode_prompt(prompts, device, 1, True)
        return {"prompt_embeds": embeds.cpu(), "negative_prompt_embeds": negative.cpu()}

    def conditions(self, batch: dict[str, torch.Tensor], size: tuple[int, int] | None = None) -> dict:
        return {"encoder_hidden_states": batch["prompt_embeds"]}

    def prompt_layers(self, unet: UNet2DConditionModel) -> list[str]:
        return cross_attention_layers(unet)

    def prompt_inputs(self, unet: UNet2DConditionModel, prompts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict.fromkeys(self.prompt_layers(unet), prompts["prompt_embeds"].flatten(0, 1).to(unet.device))
