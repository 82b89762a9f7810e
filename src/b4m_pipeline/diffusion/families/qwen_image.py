"""Qwen-Image."""

from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, DiffusionPipeline, QwenImagePipeline, QwenImageTransformer2DModel

from b4m_pipeline.diffusion.families.flows import FlowFamily, pack, unpack
from b4m_pipeline.diffusion.families.prompts import MASK, Prompts, join_prompts, pad_prompts

_LONG = 256
"""Tokens of a long prompt."""


class QwenImage(FlowFamily):
    """Qwen-Image: Qwen2.5-VL's last hidden states behind its instruction, as many as the prompt has tokens. The VAE is one of
    videos, with a mean and a deviation for each channel of its latents; these are packed in patches of 2 x 2."""

    pipeline_class = QwenImagePipeline
    environment = "qwen"
    single_files = {"transformer_blocks.0.img_mod.1.weight": "Qwen/Qwen-Image"}
    denoiser_class = QwenImageTransformer2DModel
    vae_class = AutoencoderKLQwenImage
    max_tokens = 1024
    empty_prompt = " "

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        embeds, mask = pipeline.encode_prompt(prompts, device)
        lengths = [embeds.shape[1]] * len(embeds) if mask is None else mask.sum(1).tolist()
        return pad_prompts([own[:length].cpu() for own, length in zip(embeds, lengths, strict=True)])

    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        asked, empty = (self._encode(pipeline, some, device) for some in (prompts, [self.empty_prompt]))
        empty = join_prompts([empty] * len(prompts))
        return {
            "prompt_embeds": asked["prompt_embeds"],
            "prompt_embeds_mask": asked[MASK].long(),
            "negative_prompt_embeds": empty["prompt_embeds"],
            "negative_prompt_embeds_mask": empty[MASK].long(),
        }

    @classmethod
    def guidance(cls, scale: float) -> dict[str, Any]:
        return {"true_cfg_scale": scale}

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (_LONG, self.denoiser_config()["joint_attention_dim"]), MASK: (_LONG,)}

    def latent_channels(self) -> int:
        return super().latent_channels() // 4

    def pixels_per_vae_latent(self) -> int:
        return 2 ** len(self._vae_config()["temperal_downsample"])

    def _encode_images(self, vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = vae.encode(images[:, :, None]).latent_dist  # a video of one frame (B, 3, 1, H, W)
        centre, spread = (torch.tensor(own).view(-1, 1, 1) for own in (vae.config.latents_mean, vae.config.latents_std))
        return (posterior.mean[:, :, 0].cpu() - centre) / spread, posterior.std[:, :, 0].cpu() / spread

    def idle_layers(self, denoiser: Any) -> set[str]:
        last = f"transformer_blocks.{len(denoiser.transformer_blocks) - 1}"  # the prompt's stream ends there
        return {f"{last}.{name}" for name in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")}

    @classmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        return ["txt_in"]

    @torch.no_grad()
    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        return {"txt_in": denoiser.txt_norm(prompts["prompt_embeds"].to(denoiser.device, denoiser.dtype))}

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
        mask = prompts[MASK].bool()
        longest = int(mask.sum(1).max())
        tokens = denoiser(
            hidden_states=self.in_loop(latents),
            timestep=timesteps / 1000,
            encoder_hidden_states=prompts["prompt_embeds"][:, :longest],
            encoder_hidden_states_mask=mask[:, :longest].to(latents.device),
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
        ).sample
        return unpack(tokens, height)
