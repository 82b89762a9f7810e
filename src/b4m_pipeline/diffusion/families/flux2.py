"""FLUX.2 klein."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from b4m_pipeline.diffusion.families.flows import FlowFamily, places
from b4m_pipeline.diffusion.families.prompts import Prompts

_STEPS = 50
"""Denoising steps, the pipeline's default, for which the scheduler's shift is taken: it depends on them, too."""


class Flux2Klein(FlowFamily):
    """FLUX.2 klein, base and distilled: three layers of Qwen3 side by side, no pooled prompt, no guidance embedding. Latents
    are patches of 2 x 2, normalised by the statistics of the VAE's batch norm; its posterior's mean alone is used."""

    pipeline_class = Flux2KleinPipeline
    environment = "flux2"
    single_files = {"single_stream_modulation.lin.weight": "black-forest-labs/FLUX.2-klein-base-4B"}
    denoiser_class = Flux2Transformer2DModel
    vae_class = AutoencoderKLFlux2
    max_tokens = 512
    negative_prompts = False
    patch = 1  # of latents that are patches already

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        return {"prompt_embeds": pipeline.encode_prompt(prompts, device=device)[0].cpu()}

    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        embeds, empty = (self._encode(pipeline, some, device)["prompt_embeds"] for some in (prompts, [""]))
        return {"prompt_embeds": embeds, "negative_prompt_embeds": empty.expand_as(embeds)}

    @classmethod
    def prompt_tokens(cls, tokenizer: Any, prompt: str) -> int:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        return super().prompt_tokens(tokenizer, text)

    def vae_factor(self) -> int:
        return 2 * self.pixels_per_vae_latent()

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (self.max_tokens or 0, self.denoiser_config()["joint_attention_dim"])}

    def _encode_images(self, vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = F.pixel_unshuffle(vae.encode(images).latent_dist.mode(), 2)  # (B, 4 C, h/2, w/2)
        centre, spread = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        latents = ((mean - centre.view(-1, 1, 1)) / spread.view(-1, 1, 1)).cpu()
        return latents, torch.zeros_like(latents)

    @classmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        return ["context_embedder"]

    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        return {"context_embedder": prompts["prompt_embeds"].to(denoiser.device)}

    @classmethod
    def in_loop(cls, latents: torch.Tensor) -> torch.Tensor:
        return latents.flatten(2).transpose(1, 2)

    def predict(
        self,
        denoiser: Any,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: Prompts,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        height, width = latents.shape[-2:]
        words = torch.zeros(prompts["prompt_embeds"].shape[1], 4, device=latents.device)
        words[:, 3] = torch.arange(len(words), device=latents.device)
        tokens = denoiser(
            hidden_states=self.in_loop(latents),
            timestep=timesteps / 1000,
            encoder_hidden_states=prompts["prompt_embeds"],
            txt_ids=words,
            img_ids=places(height, width, 4, latents.device),
        ).sample
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def _mu(self, tokens: int, config: dict[str, Any]) -> float:
        return compute_empirical_mu(tokens, _STEPS)
