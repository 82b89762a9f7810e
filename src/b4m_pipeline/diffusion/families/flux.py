"""FLUX.1: dev, which is told the strength of guidance, and schnell, which is not."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel

from b4m_pipeline.diffusion.families.flows import FlowFamily, pack, places, unpack
from b4m_pipeline.diffusion.families.prompts import Prompts
from b4m_pipeline.diffusion.families.stable_diffusion_3 import pooled_inputs

_TRAINED_GUIDANCE = 1.0
"""What dev is told while it is trained: 1 is a picture without guidance, as training pictures are."""


class Flux(FlowFamily):
    """FLUX.1: T5's tokens, CLIP's pooled output; latents are packed in patches of 2 x 2, tokens have places."""

    pipeline_class = FluxPipeline
    environment = "flux"
    single_files = {
        "guidance_in.in_layer.bias": "black-forest-labs/FLUX.1-dev",
        "vector_in.in_layer.bias": "black-forest-labs/FLUX.1-schnell",
    }
    encoders_in_file = {"text_encoder": "text_encoders.clip_l.", "text_encoder_2": "text_encoders.t5xxl."}
    denoiser_class = FluxTransformer2DModel
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    unused_parts = ("image_encoder", "feature_extractor")
    reader, max_tokens = "tokenizer_2", 512
    negative_prompts = False  # it is told how strong guidance is, and not given a second prompt

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        embeds, pooled, _ = pipeline.encode_prompt(prompts, device=device)
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        return self._encode(pipeline, prompts, device)

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        config = self.denoiser_config()
        tokens = (self.max_tokens or 0, config["joint_attention_dim"])
        return {"prompt_embeds": tokens, "pooled_prompt_embeds": (config["pooled_projection_dim"],)}

    def latent_channels(self) -> int:
        return super().latent_channels() // 4

    @classmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        return ["context_embedder", *(f"time_text_embed.text_embedder.linear_{index}" for index in (1, 2))]

    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        tokens = prompts["prompt_embeds"].to(denoiser.device)
        return {"context_embedder": tokens} | pooled_inputs(denoiser, prompts["pooled_prompt_embeds"])

    @classmethod
    def in_loop(cls, latents: torch.Tensor) -> torch.Tensor:
        return pack(latents)

    def predict(
        self,
        denoiser: Any,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: Prompts,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        height, width = latents.shape[-2:]
        guided = denoiser.config.guidance_embeds
        tokens = denoiser(
            hidden_states=self.in_loop(latents),
            timestep=timesteps / 1000,
            guidance=timesteps.new_full(timesteps.shape, _TRAINED_GUIDANCE) if guided else None,
            pooled_projections=prompts["pooled_prompt_embeds"],
            encoder_hidden_states=prompts["prompt_embeds"],
            txt_ids=torch.zeros(prompts["prompt_embeds"].shape[1], 3, device=latents.device),
            img_ids=places(height // 2, width // 2, 3, latents.device),
        ).sample
        return unpack(tokens, height)
