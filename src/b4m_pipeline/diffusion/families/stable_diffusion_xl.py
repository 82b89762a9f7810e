"""Stable Diffusion XL."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from b4m_pipeline.diffusion.families.prompts import Prompts
from b4m_pipeline.diffusion.families.unets import UNetFamily, cross_attention_layers


class StableDiffusionXL(UNetFamily):
    """SDXL: two text encoders, their pooled output and the picture's size as further conditions."""

    pipeline_class = StableDiffusionXLPipeline
    environment = "sdxl"
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    single_files = {"conditioner.embedders.1.model.positional_embedding": "stabilityai/stable-diffusion-xl-base-1.0"}
    encoders_in_file = {"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."}

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        encoded = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=True)
        return dict(zip(names, (tensor.cpu() for tensor in encoded), strict=True))

    def conditions(self, prompts: Prompts, size: tuple[int, int] | None = None) -> dict:
        height, width = size or (self.params.resolution,) * 2
        pooled = prompts["pooled_prompt_embeds"]
        # original height and width, crop top and left, target height and width: what the pipeline says when sampling
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype, device=pooled.device)
        added = {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}
        return {"encoder_hidden_states": prompts["prompt_embeds"], "added_cond_kwargs": added}

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.denoiser_config()
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return super().prompt_shapes() | {"pooled_prompt_embeds": (pooled,)}

    @classmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        return [*cross_attention_layers(denoiser), "add_embedding.linear_1", "add_embedding.linear_2"]

    @torch.no_grad()
    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        there = {key: value.to(denoiser.device, denoiser.dtype) for key, value in prompts.items()}
        added = self.conditions(there)["added_cond_kwargs"]
        pooled, time_ids = added["text_embeds"], added["time_ids"]
        sizes = denoiser.add_time_proj(time_ids.flatten()).reshape(len(pooled), -1).to(pooled)
        first = torch.cat([pooled, sizes], dim=-1)
        second = denoiser.add_embedding.act(denoiser.add_embedding.linear_1(first))
        tokens = prompts["prompt_embeds"].to(denoiser.device)
        own = {"add_embedding.linear_1": first[:, None], "add_embedding.linear_2": second[:, None]}
        return dict.fromkeys(self.prompt_layers(denoiser), tokens) | own
