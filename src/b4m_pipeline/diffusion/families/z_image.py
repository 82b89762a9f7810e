"""Z-Image."""

from typing import Any

import torch
from diffusers import DiffusionPipeline, ZImagePipeline, ZImageTransformer2DModel

from b4m_pipeline.diffusion.families.flows import FlowFamily
from b4m_pipeline.diffusion.families.prompts import MASK, Prompts, pad_prompts, split_prompts

_EMBEDDER = "cap_embedder.1"
_LONG = 256
"""Tokens of a long prompt."""


class _AllRead(Exception):
    """Every layer that reads the prompt has done so."""


class ZImage(FlowFamily):
    """Z-Image: Qwen3's last hidden states but one, as many as the prompt has tokens. The transformer counts time from noise (0)
    to picture (1) and says the velocity towards the picture. Its context refiner reads the prompt alone."""

    pipeline_class = ZImagePipeline
    environment = "zimage"
    single_files = {"layers.0.adaLN_modulation.0.weight": "Tongyi-MAI/Z-Image-Turbo"}
    denoiser_class = ZImageTransformer2DModel
    max_tokens = 512

    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        embeds, _ = pipeline.encode_prompt(list(prompts), device, do_classifier_free_guidance=False)  # it changes the list
        return pad_prompts([own.cpu() for own in embeds])

    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        names = ("prompt_embeds", "negative_prompt_embeds")
        encoded = pipeline.encode_prompt(list(prompts), device, do_classifier_free_guidance=True)
        return {name: [own.cpu() for own in embeds] for name, embeds in zip(names, encoded, strict=True)}

    @classmethod
    def prompt_tokens(cls, tokenizer: Any, prompt: str) -> int:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return super().prompt_tokens(tokenizer, text)

    def unbatched_layers(self, denoiser: Any) -> set[str]:
        return {_EMBEDDER, *(f"all_x_embedder.{key}" for key in denoiser.all_x_embedder)}

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (_LONG, self.denoiser_config()["cap_feat_dim"]), MASK: (_LONG,)}

    @classmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        linears = [name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)]
        return [_EMBEDDER, *(name for name in linears if name.startswith("context_refiner."))]

    @torch.no_grad()
    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        read: dict[str, list[torch.Tensor]] = {name: [] for name in self.prompt_layers(denoiser)}

        def stop(*_: Any) -> None:
            raise _AllRead

        hooks = [denoiser.layers[0].register_forward_pre_hook(stop)]
        for name, rows in read.items():
            layer = denoiser.get_submodule(name)
            hooks.append(layer.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(given[0])))
        latents = torch.zeros(1, denoiser.in_channels, self.patch, self.patch, device=denoiser.device, dtype=denoiser.dtype)
        try:
            for own in split_prompts(prompts):  # one by one: each as long as it is
                batch = {key: value[None].to(denoiser.device, denoiser.dtype) for key, value in own.items()}
                try:
                    self.predict(denoiser, latents, latents.new_zeros(1), batch)
                except _AllRead:
                    # The embedder's padding is replaced by what stands for it in the refiner.
                    read[_EMBEDDER][-1] = read[_EMBEDDER][-1][: len(own["prompt_embeds"])]
        finally:
            for hook in hooks:
                hook.remove()
        shared: dict[tuple[int, ...], torch.Tensor] = {}  # queries, keys and values read the same
        found = {}
        for name, rows in read.items():
            key = tuple(map(id, rows))
            if key not in shared:
                shared[key] = pad_prompts([own.flatten(0, -2) for own in rows])["prompt_embeds"]
            found[name] = shared[key]
        return found

    def predict(
        self,
        denoiser: Any,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: Prompts,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        masks = prompts[MASK].bool()
        words = [own[mask] for own, mask in zip(prompts["prompt_embeds"], masks, strict=True)]
        said = denoiser(list(latents[:, :, None]), (1000 - timesteps) / 1000, words).sample  # (C, 1, h, w) each
        return -torch.stack(list(said)).squeeze(2)

    @classmethod
    def timestep_of_call(cls, given: torch.Tensor) -> torch.Tensor:
        return 1000 * (1 - given)
