"""What is common to all base-model families: how a model is loaded, by parts, and how its pictures are encoded.

A family loads only the parts that a step needs: prompts need text encoders, pictures the VAE, training the UNet.
"""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from transformers import CLIPTokenizer

from b4m_pipeline.common.devices import drawing_dtype
from b4m_pipeline.common.hub import CONFIG, require_model
from b4m_pipeline.common.provenance import recipe_code
from b4m_pipeline.diffusion.families.identity import BaseModelError, required, sample_file
from b4m_pipeline.diffusion.params import BaseModelParams


class Family(ABC):
    """One family of base models: how it is loaded, how prompts are encoded, what the UNet is conditioned on."""

    pipeline_class: type[DiffusionPipeline]

    def __init__(self, params: BaseModelParams):
        self.params = params

    def _load(self, model_class: Any, subfolder: str, **extra):
        p = self.params
        with required(f"base_model.path {p.path!r} has no usable {subfolder}"):
            return model_class.from_pretrained(
                p.path, subfolder=subfolder, revision=p.revision, variant=p.variant, use_safetensors=True, **extra
            )

    def load_denoiser(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """The UNet alone, frozen."""
        unet = self._load(UNet2DConditionModel, "unet", dtype=dtype).requires_grad_(False)
        if device == "cpu":
            unet.set_attn_processor(AttnProcessor())  # its backward is faster than the flash kernel's there
        return unet.to(device)

    def empty_denoiser(self) -> UNet2DConditionModel:
        """The UNet's layers without weights, from its configuration alone."""
        p = self.params
        with required(f"base_model.path {p.path!r} has no usable unet"):
            config = UNet2DConditionModel.load_config(p.path, subfolder="unet", revision=p.revision)
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(config)

    def load_noise_schedule(self) -> DDPMScheduler:
        """add_noise and get_velocity with the base model's betas and prediction type."""
        p = self.params
        with required(f"base_model.path {p.path!r} has no usable scheduler"):
            return DDPMScheduler.from_config(DDPMScheduler.load_config(p.path, subfolder="scheduler", revision=p.revision))

    def load_tokenizer(self) -> CLIPTokenizer:
        """The (first) tokenizer."""
        p = self.params
        with required(f"base_model.path {p.path!r} has no usable tokenizer"):
            return CLIPTokenizer.from_pretrained(p.path, subfolder="tokenizer", revision=p.revision)

    def load_vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
        """base_model.vae where it is set, else the base model's own."""
        p = self.params
        if not p.vae:
            return self._load(AutoencoderKL, "vae", dtype=dtype)
        source, options = self._vae_source()
        with required(f"base_model.vae {p.vae!r} cannot be loaded"):
            return AutoencoderKL.from_pretrained(source, use_safetensors=True, dtype=dtype, **options)

    def _vae_source(self) -> tuple[str, dict]:
        """Where the VAE lies, as diffusers is told."""
        p = self.params
        if not p.vae:
            return p.path, {"subfolder": "vae", "revision": p.revision}
        name, _, revision = p.vae.partition("@")
        return (name, {"revision": revision}) if revision and not Path(p.vae).exists() else (p.vae, {})

    def check_parts(self) -> None:
        """Raise BaseModelError or HubError if a part that is read from somewhere else, or late, is not there."""
        self.load_noise_schedule()
        if self.params.vae:
            source, options = self._vae_source()
            require_model("base_model.vae", source, CONFIG, options.get("revision"))
            with required(f"base_model.vae {self.params.vae!r} is not there"):
                AutoencoderKL.load_config(source, **options)

    @torch.no_grad()
    def encode_pictures(
        self, pictures: list[Image.Image], device: str = "cpu", batch_size: int = 16
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """RGB pictures -> mean and standard deviation of the scaled latents of each, (C, h, w), float32. Pictures of one size
        are encoded together. Raises BaseModelError for a size that the VAE does not divide evenly."""
        factor = self.vae_factor()
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, picture in enumerate(pictures):
            width, height = picture.size
            if width % factor or height % factor:
                raise BaseModelError(
                    f"a picture of {width} x {height} pixels: this base model's VAE needs multiples of {factor}, see "
                    "base_model.resolution and ingestion.buckets.step"
                )
            by_size.setdefault(picture.size, []).append(index)
        vae = self.load_vae().to(device)
        encoded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for places in by_size.values():
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                batch = np.stack([np.asarray(pictures[index].convert("RGB")) for index in part])
                images = torch.from_numpy(batch).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(device)  # (B, 3, H, W)
                posterior = vae.encode(images).latent_dist
                scaled = [value.cpu() * vae.config.scaling_factor for value in (posterior.mean, posterior.std)]
                encoded |= dict(zip(part, zip(*scaled, strict=True), strict=True))
        return [encoded[index] for index in range(len(pictures))]

    def vae_factor(self) -> int:
        """Pixels per latent along a side."""
        source, options = self._vae_source()
        with required(f"base model {source!r} has no usable VAE"):
            config = AutoencoderKL.load_config(source, **options)
        return 2 ** (len(config["block_out_channels"]) - 1)

    def _text_pipeline(self, device: str) -> DiffusionPipeline:
        """The family's pipeline with its text encoders and nothing else."""
        with required(f"base_model.path {self.params.path!r} has no usable text encoder"):
            return self._pipeline(dtype=torch.float32, unet=None, vae=None).to(device)

    _unused_parts: tuple[str, ...] = ()

    def load_pipeline(self, device: str = "cpu") -> DiffusionPipeline:
        """The whole model to draw with: float32 on a CPU, float16 on a GPU."""
        dtype = drawing_dtype(device)
        own_vae = {"vae": self.load_vae(dtype)} if self.params.vae else {}
        with required(f"base_model.path {self.params.path!r} cannot be drawn with"):
            return self._pipeline(dtype=dtype, **own_vae).to(device)

    def _pipeline(self, **parts: Any) -> DiffusionPipeline:
        """The family's pipeline, with these parts in place of the model's own (None: without)."""
        p, unused = self.params, dict.fromkeys(self._unused_parts)
        options = {"revision": p.revision, "variant": p.variant, "use_safetensors": True}
        pipeline = self.pipeline_class.from_pretrained(p.path, **options, **unused | parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def encoder_digest(self) -> str:
        """Digest of all that encodes pictures and prompts: VAE, text encoders, tokenizers, code (of Hub ids and revision where
        they are not local)."""
        return self._digest(self._encoders(), hashlib.sha256(recipe_code("diffusion/families").encode()))

    def parts_digest(self) -> str:
        """Digest of all of the base model but its UNet, whose digest is `base_model_id`'s: what encodes, and the scheduler."""
        return self._digest([*self._encoders(), "scheduler"], hashlib.sha256())

    def _digest(self, parts: list[str], digest: "hashlib._Hash") -> str:
        p = self.params
        digest.update(f"{p.variant} {p.revision}".encode())
        for source, own in ((p.path, parts), (p.vae, [""])):
            folder = Path(source or "")
            if source is None or not folder.is_dir():
                digest.update(str(source).encode())
                continue
            for part in own:
                for file in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
                    digest.update(file.relative_to(folder).as_posix().encode())
                    sample_file(file, digest)
        return digest.hexdigest()[:16]

    def _encoders(self) -> list[str]:
        return ["vae", *self._text_parts]

    def drawing_pipeline(self, unet: UNet2DConditionModel) -> DiffusionPipeline:
        """What draws from encoded prompts with this UNet: the family's pipeline without text encoders; the VAE is float32."""
        return self._pipeline(unet=unet, vae=self.load_vae(), **dict.fromkeys(self._text_parts))

    _text_parts: tuple[str, ...] = ("text_encoder", "tokenizer")

    @abstractmethod
    def encode_guided(self, prompts: list[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        """Prompts -> arguments of the family's pipeline, those of the empty prompt for guidance among them, (N, ...) each,
        float32 on the CPU."""

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], device: str = "cpu", batch_size: int = 128) -> dict[str, torch.Tensor]:
        """Prompts -> prompt_embeds (N, T, D) and what else the UNet needs of them, float32 on the CPU. batch_size: so many go
        through the text encoders at once. Raises BaseModelError if these cannot be loaded."""
        pipeline = self._text_pipeline(device)
        starts = range(0, len(prompts), batch_size)
        parts = [self._encode(pipeline, prompts[start : start + batch_size], device) for start in starts]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @abstractmethod
    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, torch.Tensor]:
        """`encode_prompts` with a pipeline of text encoders that is at hand."""

    @abstractmethod
    def prompt_layers(self, unet: UNet2DConditionModel) -> list[str]:
        """Names of the linear layers that read nothing but the prompt."""

    @abstractmethod
    def prompt_inputs(self, unet: UNet2DConditionModel, prompts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What these layers are given for encoded prompts: name -> (N, n), a row a token or a prompt."""

    @abstractmethod
    def conditions(self, batch: dict[str, torch.Tensor], size: tuple[int, int] | None = None) -> dict:
        """Keyword arguments of the UNet for a batch of encoded prompts. size: height and width of the pictures in pixels, if
        they are no squares of the base's resolution."""


def cross_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Keys and values of cross-attention. All read one and the same: the encoded tokens."""
    return [name for name, _ in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))]
