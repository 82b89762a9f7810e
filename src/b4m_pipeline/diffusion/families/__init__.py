"""Base-model families, one file each: what they do differently when prompts and pictures are encoded and when they train."""

from pathlib import Path

from diffusers import DiffusionPipeline

from b4m_pipeline.common.hub import require_model
from b4m_pipeline.diffusion.families.base import Family as Family
from b4m_pipeline.diffusion.families.identity import BaseModelError as BaseModelError
from b4m_pipeline.diffusion.families.identity import base_model_id as base_model_id
from b4m_pipeline.diffusion.families.identity import required
from b4m_pipeline.diffusion.families.identity import weights_digest as weights_digest
from b4m_pipeline.diffusion.families.stable_diffusion import StableDiffusion as StableDiffusion
from b4m_pipeline.diffusion.families.stable_diffusion_xl import StableDiffusionXL as StableDiffusionXL
from b4m_pipeline.diffusion.params import BaseModelParams

FAMILIES: dict[str, type[Family]] = {"StableDiffusionPipeline": StableDiffusion, "StableDiffusionXLPipeline": StableDiffusionXL}


def load_family(params: BaseModelParams) -> Family:
    """Read model_index.json and pick the family. Raises BaseModelError or HubError, naming the parameter, if there is no such
    model."""
    local = Path(params.path)
    if local.exists() and not (local / "model_index.json").is_file():
        raise BaseModelError(f"base_model.path {params.path!r} is not a diffusers model: it has no model_index.json")
    require_model("base_model.path", params.path, ("model_index.json",), params.revision)
    with required(f"base_model.path {params.path!r} cannot be read"):
        index = DiffusionPipeline.load_config(params.path, revision=params.revision)
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise BaseModelError(f"base_model.path {params.path!r} is a {name}; supported are {sorted(FAMILIES)}")
    return FAMILIES[name](params)


def encoder_id(params: BaseModelParams) -> str:
    """What encodes pictures and prompts, and what noise they are learnt under: the base model, another VAE where one is set,
    the resolution, and a digest of encoders and scheduler."""
    about = f"{base_model_id(params)}{f'+{params.vae}' if params.vae else ''}@{params.resolution}px"
    return f"{about}, {load_family(params).parts_digest()}"
