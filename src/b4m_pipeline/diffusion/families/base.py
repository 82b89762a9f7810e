"""What is common to all base-model families: how a model is loaded, by parts, and how its pictures are encoded.

A family loads only the parts that a step needs: prompts need text encoders, pictures the VAE, training the denoiser.
"""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from transformers import AutoTokenizer

from b4m_pipeline.common.devices import drawing_dtype, encoding_dtype, is_large
from b4m_pipeline.common.hub import CONFIG, require_model
from b4m_pipeline.common.progress import batches
from b4m_pipeline.common.provenance import recipe_code
from b4m_pipeline.diffusion.families import quantized
from b4m_pipeline.diffusion.families.identity import BaseModelError, required
from b4m_pipeline.diffusion.families.noise import NoiseSchedule
from b4m_pipeline.diffusion.families.offload import place
from b4m_pipeline.diffusion.families.pictures import Latents, in_batches
from b4m_pipeline.diffusion.families.prompts import MASK, Prompts, in_float32, join_prompts
from b4m_pipeline.diffusion.families.source import Source, feed_folder
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.adapter import PIPELINE_KEY
from b4m_pipeline.method.layers import find_layers


class Family(ABC):
    """One family of base models: how it is loaded, how prompts and pictures are encoded, what its denoiser is conditioned on
    and learns. "transformer" and "unet" are diffusers' names of the part that denoises."""

    pipeline_class: type[DiffusionPipeline]
    denoiser_name: str
    denoiser_class: Any
    vae_class: Any = AutoencoderKL
    tokenizer_class: Any = AutoTokenizer
    text_parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    unused_parts: tuple[str, ...] = ()
    gpu_dtype: torch.dtype
    """Number format that images are drawn in on a GPU."""
    reader: str = "tokenizer"
    """The tokenizer of the text encoder that reads the longest prompts."""
    max_tokens: int | None = None
    """How many tokens that reads; None: the tokenizer says."""
    negative_prompts: bool = True
    """Whether the pipeline takes negative prompts."""
    empty_prompt: str | None = None
    """The negative prompt without which the pipeline does not guide; None: it does."""

    environment: str
    """The configuration environment of its models, see conf/."""
    single_files: dict[str, str] = {}
    """Names of tensors by which a single file of this family is known -> the model of the Hub with its configuration."""
    encoders_in_file: dict[str, str] = {}
    """Text encoders that may lie in such a file, too -> how the names of their tensors begin."""

    def __init__(self, params: BaseModelParams, source: Source | None = None):
        self.params, self.source = params, source or Source(params)

    def metadata(self) -> dict[str, str]:
        """What adapters keep of the family, see `method.adapter.PIPELINE_KEY`."""
        return {} if self.denoiser_name == "unet" else {PIPELINE_KEY: self.pipeline_class.__name__}

    def load_denoiser(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """The denoiser alone, frozen; quantised if base_model.quantization says so."""
        kind = self.params.quantization
        extra = quantized.for_denoiser(kind, self.empty_denoiser(), device, dtype) if kind else {}
        denoiser = self.source.load(self.denoiser_class, self.denoiser_name, dtype=dtype, **extra)
        return self.arrange(quantized.keep_trainable(denoiser).requires_grad_(False), device).to(device)

    def arrange(self, denoiser: Any, device: str) -> Any:
        """The denoiser, set up to be trained on a device."""
        return denoiser

    def empty_denoiser(self) -> Any:
        """The denoiser's layers without weights, from its configuration alone."""
        with torch.device("meta"):
            return self.denoiser_class.from_config(self.denoiser_config())

    def denoiser_config(self) -> dict[str, Any]:
        return self.source.config(self.denoiser_class, self.denoiser_name)

    @abstractmethod
    def load_noise_schedule(self) -> NoiseSchedule:
        """How noise is added, and what the denoiser learns to say of it."""

    def load_tokenizer(self) -> Any:
        """The one that `reader` names."""
        return self.source.tokenizer(self.tokenizer_class, self.reader)

    @classmethod
    def prompt_tokens(cls, tokenizer: Any, prompt: str) -> int:
        """How many tokens of `max_tokens` a prompt is, with all that stands around it."""
        return len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])

    @classmethod
    def token_limit(cls, tokenizer: Any) -> int:
        return cls.max_tokens or tokenizer.model_max_length

    def load_vae(self, dtype: torch.dtype = torch.float32) -> Any:
        """base_model.vae where it is set, else the base model's own."""
        p = self.params
        if not p.vae:
            return self.source.load(self.vae_class, "vae", dtype=dtype)
        source, options = self._vae_source()
        with required(f"base_model.vae {p.vae!r} cannot be loaded"):
            return self.vae_class.from_pretrained(source, use_safetensors=True, dtype=dtype, **options)

    def _vae_source(self) -> tuple[str, dict]:
        """Where the VAE lies, as diffusers is told."""
        p = self.params
        if not p.vae:
            return self.source.place, {"subfolder": "vae", "revision": p.revision}
        name, _, revision = p.vae.partition("@")
        return (name, {"revision": revision}) if revision and not Path(p.vae).exists() else (p.vae, {})

    def _vae_config(self) -> dict[str, Any]:
        source, options = self._vae_source()
        with required(
            f"base_model.vae {self.params.vae!r} is not there" if self.params.vae else f"{source!r} has no usable VAE"
        ):
            return self.vae_class.load_config(source, **options)

    def check_parts(self) -> None:
        """Raise BaseModelError or HubError if a part that is read from somewhere else, or late, is not there, or if it does not
        go with the resolution; QuantizationError if weights are to be quantised and cannot be."""
        quantized.check_quantization(self.params.quantization)
        quantized.require_plain_weights(self.params.path, self.denoiser_config())
        self.source.check(self.denoiser_class, self.denoiser_name, self.empty_denoiser)
        self.load_noise_schedule()
        self._require_text_parts()
        if self.params.vae:
            source, options = self._vae_source()
            require_model("base_model.vae", source, CONFIG, options.get("revision"))
        if rest := self.params.resolution % self.side_multiple():
            raise BaseModelError(
                f"base_model.resolution is {self.params.resolution}, and this base model's pictures have sides of multiples of "
                f"{self.side_multiple()} pixels: use {self.params.resolution - rest or self.side_multiple()}"
            )

    @torch.no_grad()
    def encode_pictures(self, pictures: list[Image.Image], device: str = "cpu", batch_size: int | None = None) -> list[Latents]:
        """RGB pictures -> mean and standard deviation of the latents of each as the denoiser takes them, (C, h, w), float32.
        Pictures of one size are encoded together. Raises BaseModelError for a size that the base model cannot have."""
        vae = self.load_vae().to(device)
        return in_batches(
            pictures, self.side_multiple(), lambda images: self._encode_images(vae, images.to(device)), batch_size
        )

    def _encode_images(self, vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> means and standard deviations of their latents, (B, C, h, w) each, on the CPU."""
        posterior = vae.encode(images).latent_dist
        shift = vae.config.get("shift_factor") or 0.0
        return (posterior.mean.cpu() - shift) * vae.config.scaling_factor, posterior.std.cpu() * vae.config.scaling_factor

    def vae_factor(self) -> int:
        """Pixels per latent along a side."""
        return self.pixels_per_vae_latent()

    def pixels_per_vae_latent(self) -> int:
        """The same of the VAE's own latents, before they are cut into patches."""
        return 2 ** (len(self._vae_config()["block_out_channels"]) - 1)

    def side_multiple(self) -> int:
        """What the pixels of a picture's side must be a multiple of: the VAE's factor, times the denoiser's patches."""
        return self.vae_factor()

    def _text_pipeline(self, device: str) -> DiffusionPipeline:
        """The family's pipeline with its text encoders and nothing else. Raises BaseModelError if one is missing."""
        self._require_text_parts()
        self.source.fetch(self.text_parts)
        dtypes = {part: encoding_dtype(device, self.source.stored(part)) for part in self.encoders()}
        with required(f"base_model.path {self.params.path!r} has no usable text encoder"):
            parts = {self.denoiser_name: None, "vae": None} | self._quantized_encoders(device, dtypes)
            return place(self._pipeline(dtype=dtypes | {"default": torch.float32}, **parts), device, self.params.offload)

    def encoders(self) -> list[str]:
        """The text encoders among `text_parts`."""
        return [part for part in self.text_parts if part.startswith("text_encoder")]

    def _quantized_encoders(self, device: str, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
        """The large text encoders, if base_model.quantization is set. dtypes: what each calculates in."""
        kind, found = self.params.quantization, {}
        for part in self.encoders() if kind else []:
            if is_large(self.source.stored(part)):
                extra = quantized.for_encoder(kind, device, dtypes[part])
                found[part] = quantized.keep_trainable(self.source.load_encoder(part, dtype=dtypes[part], **extra))
        return found

    def _require_text_parts(self) -> None:
        if missing := [part for part in self.text_parts if not self.source.names_part(part)]:
            raise BaseModelError(f"base_model.path {self.params.path!r} has no {', '.join(missing)} to read prompts with")

    def load_pipeline(self, device: str = "cpu") -> DiffusionPipeline:
        """The whole model to draw with, in one number format (see `common.devices.drawing_dtype`)."""
        stored = None
        if device == "cpu":
            self.source.fetch([self.denoiser_name])
            stored = self.source.stored(self.denoiser_name)
        dtype = drawing_dtype(device, self.gpu_dtype, stored)
        own = {"vae": self.load_vae(dtype)} if self.params.vae else {}
        if self.params.quantization:
            self.source.fetch([self.denoiser_name, *self.text_parts])
            own |= self._quantized_encoders(device, dict.fromkeys(self.encoders(), dtype))
            own[self.denoiser_name] = self.load_denoiser(device, dtype)
        with required(f"base_model.path {self.params.path!r} cannot be drawn with"):
            return place(self._pipeline(dtype=dtype, **own), device, self.params.offload)

    def drawing_pipeline(self, denoiser: Any) -> DiffusionPipeline:
        """What draws from encoded prompts with this denoiser: the family's pipeline without text encoders; the VAE decodes in
        float32, also under autocast."""
        vae = self.load_vae()
        plain = vae.decode

        def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast(latents.device.type, enabled=False):
                return plain(latents.float(), *args, **kwargs)

        vae.decode = decode
        return self._pipeline(**{self.denoiser_name: denoiser}, vae=vae, **dict.fromkeys(self.text_parts))

    def _pipeline(self, **parts: Any) -> DiffusionPipeline:
        """The family's pipeline, with these parts in place of the model's own (None: without)."""
        return self.source.pipeline(self.pipeline_class, self.text_parts, **dict.fromkeys(self.unused_parts) | parts)

    def empty_vae(self) -> Any:
        """The VAE's layers without weights."""
        with torch.device("meta"):
            return self.vae_class.from_config(self._vae_config())

    def latent_channels(self) -> int:
        """C of the latents that `predict` takes."""
        return self.denoiser_config()["in_channels"]

    @abstractmethod
    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what a prompt is encoded as, a long one where lengths differ."""

    def blank_prompts(self, count: int) -> Prompts:
        """So many encoded prompts without content, on the meta device (the mask, which is read, on the CPU)."""
        shapes = self.prompt_shapes()
        found = {name: torch.empty(count, *shape, device="meta") for name, shape in shapes.items() if name != MASK}
        return found | ({MASK: torch.ones(count, *shapes[MASK])} if MASK in shapes else {})

    def encoder_digest(self) -> str:
        """Digest of all that encodes pictures and prompts: VAE, text encoders, tokenizers, code (of Hub ids and revision where
        they are not local)."""
        return self._digest(["vae", *self.text_parts], hashlib.sha256(recipe_code("diffusion/families").encode()))

    def parts_digest(self) -> str:
        """Digest of all of the base model but its denoiser, whose digest is `base_model_id`'s: what encodes, and the
        scheduler."""
        return self._digest(["vae", *self.text_parts, "scheduler"], hashlib.sha256())

    def _digest(self, parts: list[str], digest: "hashlib._Hash") -> str:
        p = self.params
        digest.update(f"{p.variant} {p.revision}{f' {p.quantization}' if p.quantization else ''}".encode())
        self.source.feed(parts, digest)
        feed_folder(p.vae, [""], digest)
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str], device: str = "cpu", batch_size: int = 128) -> Prompts:
        """Prompts -> prompt_embeds (N, T, D) and what else the denoiser needs of them, float32 on the CPU; see `Prompts`.
        batch_size: so many go through the text encoders at once. Raises BaseModelError if these cannot be loaded."""
        pipeline = self._text_pipeline(device)
        each = batches(len(prompts), batch_size, "encoding captions")
        parts = [self._encode(pipeline, prompts[batch], device) for batch in each]
        return join_prompts([in_float32(part) for part in parts])

    @torch.no_grad()
    def encode_guided(self, prompts: list[str], device: str = "cpu") -> dict[str, Any]:
        """Prompts -> arguments of the family's pipeline, those of the empty prompt among them where it guides, a row a prompt,
        float32 on the CPU."""
        return in_float32(self._encode_guided(self._text_pipeline(device), prompts, device))

    @abstractmethod
    def _encode(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> Prompts:
        """`encode_prompts` with a pipeline of text encoders that is at hand."""

    @abstractmethod
    def _encode_guided(self, pipeline: DiffusionPipeline, prompts: list[str], device: str) -> dict[str, Any]:
        """`encode_guided` with a pipeline of text encoders that is at hand."""

    @classmethod
    def guidance(cls, scale: float) -> dict[str, Any]:
        """Arguments of the pipeline for a strength of guidance."""
        return {"guidance_scale": scale}

    @classmethod
    def in_loop(cls, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) as the pipeline has them from step to step."""
        return latents

    @classmethod
    def timestep_of_call(cls, given: torch.Tensor) -> torch.Tensor:
        """What the pipeline tells the denoiser as the timestep -> the scheduler's timestep."""
        return given

    def find_layers(self, denoiser: torch.nn.Module, targets: list[str]) -> dict[str, tuple[int, int]]:
        """Linear layers whose names end in one of `targets` -> (out, in), without those that change nothing. Raises
        TargetError for a target that names none."""
        idle = self.idle_layers(denoiser)
        return {name: size for name, size in find_layers(denoiser, targets).items() if name not in idle}

    def idle_layers(self, denoiser: torch.nn.Module) -> set[str]:
        """Layers whose output the denoiser does not use."""
        return set()

    def unbatched_layers(self, denoiser: torch.nn.Module) -> set[str]:
        """Layers that read the tokens of all images of a batch as one row of tokens."""
        return set()

    @classmethod
    @abstractmethod
    def prompt_layers(cls, denoiser: torch.nn.Module) -> list[str]:
        """Names of the linear layers that read nothing but the prompt."""

    @abstractmethod
    def prompt_inputs(self, denoiser: Any, prompts: Prompts) -> dict[str, torch.Tensor]:
        """What these layers are given for encoded prompts: name -> (N, T, n), T being 1 for what is pooled. Rows of zeros are
        places that a shorter prompt does not have."""

    @abstractmethod
    def predict(
        self,
        denoiser: Any,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: Prompts,
        size: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """What the denoiser says of noisy latents (B, C, h, w) at timesteps (B,), in the noise schedule's own terms,
        (B, C, h, w). size: height and width of the pictures in pixels, if they are no squares of the base's resolution."""

    def timestep_shift(self, size: tuple[int, int] | None = None) -> float:
        """By how much the scheduler shifts the timesteps of pictures of this size (see `TimestepSampling`)."""
        return 1.0
