"""Stable Diffusion XL."""

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

from b4m_pipeline.diffusion.families.base import Family, cross_attention_layers


class StableDiffusionXL(Family):
    """SDXL: two text encoders, their pooled output and the picture's size as further conditions."""

    pipeline_class = StableDiffusionXLPipeline

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, torch.Tensor]:
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds.cpu(), "pooled_prompt_embeds": pooled.cpu()}

    _text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @torch.no_grad()
    def encode_guided(self, prompts: list[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        encoded = self._text_pipeline(device).encode_prompt(prompts, device=device, do_classifier_free_guidance=True)
        return dict(zip(names, (tensor.cpu() for tensor in encoded), strict=True))

    def conditions(self, batch: dict[str, torch.Tensor], size: tuple[int, int] | None = None) -> dict:
        height, width = size or (self.params.resolution,) * 2
        pooled = batch["pooled_prompt_embeds"]
        # original height and width, crop top and left, target height and width: what the pipeline says when sampling
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype, device=pooled.device)
        added = {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}
        return {"encoder_hidden_states": batch["prompt_embeds"], "added_cond_kwargs": added}

    def prompt_layers(self, unet: UNet2DConditionModel) -> list[str]:
        return [*cross_attention_layers(unet), "add_embedding.linear_1", "add_embedding.linear_2"]

    @torch.no_grad()
    def prompt_inputs(self, unet: UNet2DConditionModel, prompts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        added = self.conditions({key: value.to(unet.device, unet.dtype) for key, value in prompts.items()})["added_cond_kwargs"]
        pooled, time_ids = added["text_embeds"], added["time_ids"]
        sizes = unet.add_time_proj(time_ids.flatten()).reshape(len(pooled), -1).to(pooled)
        first = torch.cat([pooled, sizes], dim=-1)
        second = unet.add_embedding.act(unet.add_embedding.linear_1(first))
        tokens = prompts["prompt_embeds"].flatten(0, 1).to(unet.device)
        own = {"add_embedding.linear_1": first, "add_embedding.linear_2": second}
        return dict.fromkeys(self.prompt_layers(unet), tokens) | own
