"""Stable Diffusion 1.x and 2.x."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from b4m_pipeline.diffusion.families.prompts import Prompts
from b4m_pipeline.diffusion.families.unets import UNetFamily, cross_attention_layers


class StableDiffusion(UNetFamily):
    """SD 1.x and 2.x: one text encoder, no further conditions."""

    pipeline_class = StableDiffusionPipeline
    environment = "sd15"
    unused_parts = ("safety_checker", "feature_extractor")
    single_files = {
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "cond_stage_model.model.positional_embedding": "stabilityai/stable-diffusion-2-1",
    }
    encoders_in_file = {"text_encoder": "cond_stage_model."}

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        embeds, _ = pipeline.encode_prompt(prompts, device, 1, False)
        return {"prompt_embeds": embeds.cpu()}

    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        embeds, negative = pipeline.encode_prompt(prompts, device, 1, True)
        return {"prompt_embeds": embeds.cpu(), "negative_prompt_embeds": negative.cpu()}

    def conditions(self, prompts: Prompts, size: tuple[int, int] | None = None) -> dict:
        return {"encoder_hidden_states": prompts["prompt_embeds"]}

    @classmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        return cross_attention_layers(denoiser)

    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        return dict.fromkeys(self.prompt_layers(denoiser), prompts["prompt_embeds"].to(denoiser.device))
