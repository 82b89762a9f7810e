"""Base-model families, one file each: what they do differently when prompts and pictures are encoded and when they train."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from b4m_pipeline.diffusion.families.base import Family as Family
from b4m_pipeline.diffusion.families.flux import Flux as Flux
from b4m_pipeline.diffusion.families.flux2 import Flux2Klein as Flux2Klein
from b4m_pipeline.diffusion.families.identity import BaseModelError as BaseModelError
from b4m_pipeline.diffusion.families.identity import base_model_id as base_model_id
from b4m_pipeline.diffusion.families.identity import weights_digest as weights_digest
from b4m_pipeline.diffusion.families.noise import ObjectiveError as ObjectiveError
from b4m_pipeline.diffusion.families.noise import TimestepSampling as TimestepSampling
from b4m_pipeline.diffusion.families.qwen_image import QwenImage as QwenImage
from b4m_pipeline.diffusion.families.stable_diffusion import StableDiffusion as StableDiffusion
from b4m_pipeline.diffusion.families.stable_diffusion_3 import StableDiffusion3 as StableDiffusion3
from b4m_pipeline.diffusion.families.stable_diffusion_xl import StableDiffusionXL as StableDiffusionXL
from b4m_pipeline.diffusion.families.z_image import ZImage as ZImage
from b4m_pipeline.diffusion.params import BaseModelParams

FAMILIES: dict[str, type[Family]] = {
    family.pipeline_class.__name__: family
    for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, Flux2Klein, ZImage, QwenImage)
}
"""By diffusers' class of the pipeline, as `model_index.json` names it."""


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


def family_of(pipeline: DiffusionPipeline) -> type[Family]:
    """The family of a pipeline that is loaded."""
    return FAMILIES[type(pipeline).__name__]


def denoiser_of(pipeline: DiffusionPipeline) -> Any:
    """The UNet or transformer of a pipeline that is loaded."""
    return getattr(pipeline, family_of(pipeline).denoiser_name)


def encoder_id(params: BaseModelParams) -> str:
    """What encodes pictures and prompts, and what noise they are learnt under: the base model, another VAE where one is set,
    the resolution, and a digest of encoders and scheduler."""
    about = f"{base_model_id(params)}{f'+{params.vae}' if params.vae else ''}@{params.resolution}px"
    return f"{about}, {load_family(params).parts_digest()}"
