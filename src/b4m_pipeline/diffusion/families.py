"""Base-model families: what SD 1.x/2.x and SDXL do differently when prompts and pictures are encoded and when they train.

A family loads only the parts that a step needs: prompts need text encoders, pictures the VAE, training the UNet.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from transformers import CLIPTokenizer

from b4m_pipeline.common.config import BaseModelParams
from b4m_pipeline.common.provenance import code_version

logger = logging.getLogger(__name__)


class BaseModelError(ValueError):
    """The base model is not there, or of a family that is not supported."""


class Family(ABC):
    """One family of base models: how it is loaded, how prompts are encoded, what the UNet is conditioned on."""

    pipeline_class: type[DiffusionPipeline]

    def __init__(self, params: BaseModelParams):
        self.params = params

    def _load(self, model_class: type, subfolder: str, **extra):
        p = self.params
        try:
            return model_class.from_pretrained(
                p.path, subfolder=subfolder, revision=p.revision, variant=p.variant, use_safetensors=True, **extra
            )
        except OSError as error:
            raise BaseModelError(f"base_model.path {p.path!r} has no usable {subfolder}: {error}") from error

    def load_denoiser(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
        """The UNet alone, frozen."""
        unet = self._load(UNet2DConditionModel, "unet", torch_dtype=dtype).requires_grad_(False)
        if device == "cpu":
            unet.set_attn_processor(AttnProcessor())  # its backward is faster than the flash kernel's there
        return unet.to(device)

    def empty_denoiser(self) -> UNet2DConditionModel:
        """The UNet's layers without weights, from its configuration alone."""
        p = self.params
        try:
            config = UNet2DConditionModel.load_config(p.path, subfolder="unet", revision=p.revision)
        except OSError as error:
            raise BaseModelError(f"base_model.path {p.path!r} has no usable unet: {error}") from error
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(config)

    def load_noise_schedule(self) -> DDPMScheduler:
        """add_noise and get_velocity with the base model's betas and prediction type."""
        p = self.params
        try:
            return DDPMScheduler.from_config(DDPMScheduler.load_config(p.path, subfolder="scheduler", revision=p.revision))
        except OSError as error:
            raise BaseModelError(f"base_model.path {p.path!r} has no usable scheduler: {error}") from error

    def load_tokenizer(self) -> CLIPTokenizer:
        """The (first) tokenizer."""
        p = self.params
        try:
            return CLIPTokenizer.from_pretrained(p.path, subfolder="tokenizer", revision=p.revision)
        except OSError as error:
            raise BaseModelError(f"base_model.path {p.path!r} has no usable tokenizer: {error}") from error

    def load_vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
        """base_model.vae where it is set, else the base model's own."""
        p = self.params
        if not p.vae:
            return self._load(AutoencoderKL, "vae", torch_dtype=dtype)
        source, options = self._vae_source()
        try:
            return AutoencoderKL.from_pretrained(source, use_safetensors=True, torch_dtype=dtype, **options)
        except OSError as error:
            raise BaseModelError(f"base_model.vae {p.vae!r} cannot be loaded: {error}") from error

    def _vae_source(self) -> tuple[str, dict]:
        """Where the VAE lies, as diffusers is told."""
        p = self.params
        if not p.vae:
            return p.path, {"subfolder": "vae", "revision": p.revision}
        name, _, revision = p.vae.partition("@")
        return (name, {"revision": revision}) if revision and not Path(p.vae).exists() else (p.vae, {})

    def check_parts(self) -> None:
        """Raise BaseModelError if a part that is read from somewhere else, or late, is not there."""
        self.load_noise_schedule()
        if self.params.vae:
            source, options = self._vae_source()
            try:
                AutoencoderKL.load_config(source, **options)
            except OSError as error:
                first = str(error).splitlines()[0]
                raise BaseModelError(f"base_model.vae {self.params.vae!r} is not there: {first}") from error

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
        vae, encoded = self.load_vae().to(device), {}
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
        try:
            config = AutoencoderKL.load_config(source, **options)
        except OSError as error:
            raise BaseModelError(f"base model {source!r} has no usable VAE: {error}") from error
        return 2 ** (len(config["block_out_channels"]) - 1)

    def _text_pipeline(self, device: str) -> DiffusionPipeline:
        """The family's pipeline with its text encoders and nothing else."""
        p = self.params
        absent = {"unet": None, "vae": None} | dict.fromkeys(self._unused_parts)
        try:
            pipeline = self.pipeline_class.from_pretrained(
                p.path, revision=p.revision, variant=p.variant, use_safetensors=True, torch_dtype=torch.float32, **absent
            )
        except OSError as error:
            raise BaseModelError(f"base_model.path {p.path!r} has no usable text encoder: {error}") from error
        return pipeline.to(device)

    _unused_parts: tuple[str, ...] = ()

    def load_pipeline(self, device: str = "cpu") -> DiffusionPipeline:
        """The whole model to draw with: float32 on a CPU, float16 on a GPU."""
        p = self.params
        dtype = torch.float16 if device == "cuda" else torch.float32
        options = dict.fromkeys(self._unused_parts)
        if p.vae:
            options["vae"] = self.load_vae(dtype)
        try:
            pipeline = self.pipeline_class.from_pretrained(
                p.path, revision=p.revision, variant=p.variant, use_safetensors=True, torch_dtype=dtype, **options
            )
        except OSError as error:
            raise BaseModelError(f"base_model.path {p.path!r} cannot be drawn with: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def encoder_digest(self) -> str:
        """Digest of all that encodes pictures and prompts: VAE, text encoders, tokenizers, code (of Hub ids and revision where
        they are not local)."""
        return self._digest(self._encoders(), hashlib.sha256(code_version().encode()))

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
                    _sample(file, digest)
        return digest.hexdigest()[:16]

    def _encoders(self) -> list[str]:
        return ["vae", *self._text_parts]

    def drawing_pipeline(self, unet: UNet2DConditionModel) -> DiffusionPipeline:
        """What draws from encoded prompts with this UNet: the family's pipeline without text encoders; the VAE is float32."""
        p = self.params
        absent = dict.fromkeys((*self._unused_parts, *self._text_parts))
        pipeline = self.pipeline_class.from_pretrained(
            p.path, revision=p.revision, use_safetensors=True, unet=unet, vae=self.load_vae(), **absent
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

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
        return _cross_attention_layers(unet)

    def prompt_inputs(self, unet: UNet2DConditionModel, prompts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict.fromkeys(self.prompt_layers(unet), prompts["prompt_embeds"].flatten(0, 1).to(unet.device))


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
        return [*_cross_attention_layers(unet), "add_embedding.linear_1", "add_embedding.linear_2"]

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


def _cross_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Keys and values of cross-attention. All read one and the same: the encoded tokens."""
    return [name for name, _ in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))]


FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def load_family(params: BaseModelParams) -> Family:
    """Read model_index.json and pick the family. Raises BaseModelError, naming the parameter, if there is no such model."""
    local = Path(params.path)
    if local.exists() and not (local / "model_index.json").is_file():
        raise BaseModelError(f"base_model.path {params.path!r} is not a diffusers model: it has no model_index.json")
    try:
        index = DiffusionPipeline.load_config(params.path, revision=params.revision)
    except OSError as error:
        raise BaseModelError(
            f"base_model.path {params.path!r} is neither a local folder nor a model that can be had from the "
            f"Hugging Face Hub now: {str(error).splitlines()[0]}"
        ) from error
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise BaseModelError(f"base_model.path {params.path!r} is a {name}; supported are {sorted(FAMILIES)}")
    return FAMILIES[name](params)


def base_model_id(params: BaseModelParams) -> str:
    """Which base model this is, wherever it lies: name and a digest of the UNet's weights (of the Hub id and revision where
    the model is not local). Large files are sampled: header, size and 64 evenly spaced blocks of 64 KiB."""
    folder = Path(params.path)
    digest = hashlib.sha256()
    if not folder.is_dir():
        digest.update(f"{params.path}@{params.revision}".encode())
        return f"{params.path.rsplit('/', 1)[-1]}@{digest.hexdigest()[:12]}"
    files = sorted((folder / "unet").glob("*.safetensors"))
    if not files:
        raise BaseModelError(f"base_model.path {params.path!r} has no unet/*.safetensors")
    for file in files:
        _sample(file, digest)
    return f"{folder.resolve().name}@{digest.hexdigest()[:12]}"


def _sample(file: Path, digest: "hashlib._Hash") -> None:
    """Feed size and 64 evenly spaced blocks of 64 KiB of a file: its header is the first."""
    size = file.stat().st_size
    digest.update(str(size).encode())
    with open(file, "rb") as handle:
        for block in range(64):
            handle.seek(block * max(0, size - 65536) // 63)
            digest.update(handle.read(65536))


def weights_digest(path: str | None) -> str | None:
    """Digest of the safetensors in a folder; a Hub id, or None, is its own."""
    if path is None or not Path(path).is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        _sample(file, digest)
    return digest.hexdigest()[:16]


def encoder_id(params: BaseModelParams) -> str:
    """What encodes pictures and prompts, and what noise they are learnt under: the base model, another VAE where one is set,
    the resolution, and a digest of encoders and scheduler."""
    about = f"{base_model_id(params)}{f'+{params.vae}' if params.vae else ''}@{params.resolution}px"
    return f"{about}, {load_family(params).parts_digest()}"
