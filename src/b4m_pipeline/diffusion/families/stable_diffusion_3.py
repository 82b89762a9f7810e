"""Stable Diffusion 3 and 3.5."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, StableDiffusion3Pipeline

from b4m_pipeline.diffusion.families.flows import FlowFamily
from b4m_pipeline.diffusion.families.prompts import Prompts

_POOLED = "time_text_embed.text_embedder"


class StableDiffusion3(FlowFamily):
    """SD 3 and 3.5: two CLIP encoders and T5, side by side; CLIP's pooled outputs as a further condition. The transformer cuts
    the latents into patches itself."""

    pipeline_class = StableDiffusion3Pipeline
    environment = "sd35"
    single_files = {
        "joint_blocks.37.x_block.mlp.fc1.weight": "stabilityai/stable-diffusion-3.5-large",
        "joint_blocks.0.x_block.attn2.qkv.weight": "stabilityai/stable-diffusion-3.5-medium",
        "joint_blocks.0.context_block.adaLN_modulation.1.bias": "stabilityai/stable-diffusion-3-medium-diffusers",
    }
    encoders_in_file = {
        "text_encoder": "text_encoders.clip_l.",
        "text_encoder_2": "text_encoders.clip_g.",
        "text_encoder_3": "text_encoders.t5xxl.",
    }
    denoiser_class = SD3Transformer2DModel
    text_parts = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    unused_parts = ("image_encoder", "feature_extractor")
    reader, max_tokens = "tokenizer_3", 256

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        encoded = self._encode_both(pipeline, prompts, device, guided=False)
        return {key: encoded[key] for key in ("prompt_embeds", "pooled_prompt_embeds")}

    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        return self._encode_both(pipeline, prompts, device, guided=True)

    def _encode_both(self, pipeline: DiffusionPipeline, prompts: list[str], device: str, guided: bool) -> dict[str, Any]:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        encoded = pipeline.encode_prompt(prompts, None, None, device=device, do_classifier_free_guidance=guided)
        return {name: tensor.cpu() for name, tensor in zip(names, encoded, strict=True) if tensor is not None}

    def idle_layers(self, denoiser: Any) -> set[str]:
        return {f"transformer_blocks.{len(denoiser.transformer_blocks) - 1}.attn.add_q_proj"}  # the prompt's stream ends there

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        config, clip = self.denoiser_config(), 77
        tokens = (clip + (self.max_tokens or 0), config["joint_attention_dim"])
        return {"prompt_embeds": tokens, "pooled_prompt_embeds": (config["pooled_projection_dim"],)}

    @classmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        return ["context_embedder", f"{_POOLED}.linear_1", f"{_POOLED}.linear_2"]

    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        tokens = prompts["prompt_embeds"].to(denoiser.device)
        return {"context_embedder": tokens} | pooled_inputs(denoiser, prompts["pooled_prompt_embeds"])

    def predict(
        self,
        denoiser: Any,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: Prompts,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        return denoiser(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=prompts["prompt_embeds"],
            pooled_projections=prompts["pooled_prompt_embeds"],
        ).sample

    @classmethod
    def timestep_of_call(cls, given: torch.Tensor) -> torch.Tensor:
        return given


@torch.no_grad()
def pooled_inputs(denoiser: Any, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the two layers that embed the pooled prompt read, (N, 1, n) each, for pooled (N, n)."""
    embedder = denoiser.time_text_embed.text_embedder
    pooled = pooled.to(denoiser.device, denoiser.dtype)[:, None]
    return {f"{_POOLED}.linear_1": pooled, f"{_POOLED}.linear_2": embedder.act_1(embedder.linear_1(pooled))}
