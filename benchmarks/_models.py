"""The models that are measured: one that lies in a folder, or Stable Diffusion's full size with random weights. Nothing is
downloaded: how long a step takes does not depend on what the weights are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from b4m_pipeline.diffusion.families import Family, StableDiffusion, StableDiffusionXL, load_family
from b4m_pipeline.diffusion.families.noise import DdpmSchedule
from b4m_pipeline.diffusion.params import BaseModelParams

ROOT = Path(__file__).parents[1]
EMBEDDED_BASE = ROOT / "data/06_models/embedded_base"


@dataclass(frozen=True)
class Settings:
    """One configuration of a step. size: mini, sdxl, sd15, or a folder in diffusers' format. A step sees `batch` pictures of
    the concept and `counterparts` times as many of counterparts."""

    size: str
    resolution: int
    batch: int
    counterparts: int
    rank: int
    targets: tuple[str, ...]
    halves: str
    dtype: str
    device: str
    checkpointing: bool = False
    seed: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def precision(self) -> str:
        """TrainParams' word for it."""
        return {"float32": "no", "bfloat16": "bf16"}[self.dtype]

    @property
    def pictures(self) -> int:
        """Seen in a step."""
        return self.batch * (1 + self.counterparts)


class _RandomWeights:
    """A family without a folder: Stable Diffusion's noise schedule."""

    def load_noise_schedule(self) -> DdpmSchedule:
        return DdpmSchedule({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})


class RandomStableDiffusion(_RandomWeights, StableDiffusion):
    pass


class RandomStableDiffusionXL(_RandomWeights, StableDiffusionXL):
    pass


_FAMILIES = {"sdxl": RandomStableDiffusionXL, "sd15": RandomStableDiffusion}
FULL_SIZES = tuple(_FAMILIES)
UNETS = {
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},  # the rest is diffusers' default
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_TOKENS = 77


@contextmanager
def random_weights(settings: Settings) -> Iterator[None]:
    """Modules that are built here lie on the device in the settings' number format, with the same weights every time."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(settings.device):
        torch.manual_seed(settings.seed)
        torch.set_default_dtype(settings.torch_dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def family(settings: Settings) -> Family:
    """How the model is conditioned and what its noise schedule is."""
    if settings.size in FULL_SIZES:
        return _FAMILIES[settings.size](BaseModelParams(path=settings.size, resolution=settings.resolution))
    return load_family(BaseModelParams(path=_folder(settings), resolution=settings.resolution))


def _folder(settings: Settings) -> str:
    return str(EMBEDDED_BASE) if settings.size == "mini" else settings.size


def load_unet(settings: Settings) -> UNet2DConditionModel:
    """The frozen UNet, as a training stage loads it."""
    if settings.size not in FULL_SIZES:
        return _prepared(family(settings).load_denoiser(settings.device, settings.torch_dtype), settings)
    with random_weights(settings):
        unet = UNet2DConditionModel(**UNETS[settings.size]).requires_grad_(False)
    if settings.device == "cpu":
        unet.set_attn_processor(AttnProcessor())
    return _prepared(unet, settings)


def _prepared(unet: UNet2DConditionModel, settings: Settings) -> UNet2DConditionModel:
    if settings.checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.eval()


def load_vae(settings: Settings) -> AutoencoderKL:
    """In float32, frozen."""
    if settings.size not in FULL_SIZES:
        return family(settings).load_vae().to(settings.device).requires_grad_(False)
    with random_weights(settings):
        vae = AutoencoderKL(**VAE)
    return vae.float().requires_grad_(False)


def load_text_encoders(settings: Settings) -> list[torch.nn.Module]:
    """One or two, in the settings' number format, frozen."""
    if settings.size in FULL_SIZES:
        with random_weights(settings):
            encoders: list[torch.nn.Module] = [CLIPTextModel(CLIPTextConfig(**_CLIP_L))]
            if settings.size == "sdxl":
                config = CLIPTextConfig(**_CLIP_BIG_G, projection_dim=1280, hidden_act="gelu")
                encoders.append(CLIPTextModelWithProjection(config))
    else:
        classes: dict[str, Callable] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        there = {name: kind for name, kind in classes.items() if (Path(_folder(settings)) / name).is_dir()}
        encoders = [kind.from_pretrained(_folder(settings), subfolder=name) for name, kind in there.items()]
    return [encoder.to(settings.device, settings.torch_dtype).requires_grad_(False) for encoder in encoders]


def encoded(settings: Settings, unet: UNet2DConditionModel, number: int) -> dict[str, torch.Tensor]:
    """Latents and prompts of `number` pictures as a training set holds them, drawn by lot: (N, C, h, w), (N, T, D), (N, P)."""
    if settings.size in FULL_SIZES:
        tokens, vae = _TOKENS, VAE
    else:
        tokens = family(settings).load_tokenizer().model_max_length
        vae = AutoencoderKL.load_config(_folder(settings), subfolder="vae")
    side = settings.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
    config, generator = unet.config, torch.Generator().manual_seed(settings.seed)
    tensors = {
        "latents_mean": torch.randn(number, config.in_channels, side, side, generator=generator),
        "latents_std": torch.full((number, config.in_channels, side, side), 0.1),
        "prompt_embeds": torch.randn(number, tokens, config.cross_attention_dim, generator=generator),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        tensors["pooled_prompt_embeds"] = torch.randn(number, pooled, generator=generator)
    return tensors


def pixels(settings: Settings, number: int) -> torch.Tensor:
    """Pictures (N, 3, H, W) in [-1, 1], drawn by lot."""
    generator = torch.Generator().manual_seed(settings.seed)
    return (
        torch.rand(number, 3, settings.resolution, settings.resolution, generator=generator).mul(2).sub(1).to(settings.device)
    )
