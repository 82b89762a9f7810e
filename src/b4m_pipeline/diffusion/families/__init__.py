"""Base-model families, one file each: what they do differently when prompts and pictures are encoded and when they train."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from b4m_pipeline.common.hub import require_model
from b4m_pipeline.diffusion.families.base import Family as Family
from b4m_pipeline.diffusion.families.flux import Flux as Flux
from b4m_pipeline.diffusion.families.flux2 import Flux2Klein as Flux2Klein
from b4m_pipeline.diffusion.families.identity import BaseModelError as BaseModelError
from b4m_pipeline.diffusion.families.identity import base_model_id as base_model_id
from b4m_pipeline.diffusion.families.identity import is_single_file, required
from b4m_pipeline.diffusion.families.identity import weights_digest as weights_digest
from b4m_pipeline.diffusion.families.noise import ObjectiveError as ObjectiveError
from b4m_pipeline.diffusion.families.noise import TimestepSampling as TimestepSampling
from b4m_pipeline.diffusion.families.quantized import QuantizationError as QuantizationError
from b4m_pipeline.diffusion.families.qwen_image import QwenImage as QwenImage
from b4m_pipeline.diffusion.families.single_file import SingleFile, file_tensors, plain_name
from b4m_pipeline.diffusion.families.stable_diffusion import StableDiffusion as StableDiffusion
from b4m_pipeline.diffusion.families.stable_diffusion_3 import StableDiffusion3 as StableDiffusion3
from b4m_pipeline.diffusion.families.stable_diffusion_xl import StableDiffusionXL as StableDiffusionXL
from b4m_pipeline.diffusion.families.z_image import ZImage as ZImage
from b4m_pipeline.diffusion.params import BaseModelParams

FAMILIES: dict[str, type[Family]] = {
    family.pipeline_class.__name__: family
    for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux2Klein, Flux, ZImage, QwenImage)
}
"""By diffusers' class of the pipeline, as `model_index.json` names it."""


def load_family(params: BaseModelParams) -> Family:
    """Read model_index.json, or what a single file holds, and pick the family. Raises BaseModelError or HubError, naming
    the parameter, if there is no such model, or if it is of another family than the environment's."""
    if is_single_file(params):
        found = _family_of_file(params)
        _require_own(params, found[0])
        config = params.config or found[1]
        family = _family_of_folder("base_model.config", config, params.revision)
        if family is not found[0]:
            raise BaseModelError(
                f"base_model.path {params.path!r} is a file of {found[0].__name__}, and base_model.config {config!r} is of "
                f"{family.__name__}: choose the environment of the file's family (--env={found[0].environment}), or another "
                "config"
            )
        return family(params, SingleFile(params, config, family.encoders_in_file))
    if params.config is not None:
        raise BaseModelError(f"base_model.config is for a single file, which base_model.path {params.path!r} is not: use null")
    family = _family_of_folder("base_model.path", params.path, params.revision)
    _require_own(params, family)
    return family(params)


def _require_own(params: BaseModelParams, family: type[Family]) -> None:
    if params.family not in (None, family.__name__):
        raise BaseModelError(
            f"base_model.path {params.path!r} is of {family.__name__}, and this environment's settings are for {params.family}:"
            f" choose --env={family.environment}, or set base_model.family=null"
        )


def _family_of_folder(parameter: str, path: str, revision: str | None) -> type[Family]:
    local = Path(path)
    if local.exists() and not (local / "model_index.json").is_file():
        raise BaseModelError(f"{parameter} {path!r} is not a diffusers model: it has no model_index.json")
    require_model(parameter, path, ("model_index.json",), revision)
    with required(f"{parameter} {path!r} cannot be read"):
        index = DiffusionPipeline.load_config(path, revision=revision)
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise BaseModelError(f"{parameter} {path!r} is a {name}; supported are {sorted(FAMILIES)}")
    return FAMILIES[name]


def _family_of_file(params: BaseModelParams) -> tuple[type[Family], str]:
    """Family of a single file, and where its configuration is on the Hub."""
    names = {plain_name(name) for name in file_tensors(params)}
    for family in FAMILIES.values():
        for name, config in family.single_files.items():
            if name in names:
                return family, config
    kind = "It looks like a LoRA. " if any("lora" in name for name in names) else ""
    raise BaseModelError(
        f"base_model.path {params.path!r} is no model of a family that is supported ({', '.join(sorted(FAMILIES))}). {kind}"
        "A single file must hold a whole denoiser under the names that its authors gave its tensors"
    )


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
