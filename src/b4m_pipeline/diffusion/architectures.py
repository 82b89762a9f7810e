"""What other programs call the architecture of a base model. A family of models joins by rows in `ARCHITECTURES`.

name: of the Stability.AI model spec, version 1.0 (https://github.com/Stability-AI/ModelSpec) or, where it has none, of kohya's
scripts. base_version: kohya's `ss_base_model_version`, by which A1111, Forge and managers of LoRAs sort files.
"""

from dataclasses import dataclass, field
from typing import Any

from b4m_pipeline.diffusion.families import Family

ARCHITECTURE, PREDICTION = "architecture", "prediction_type"
"""Metadata of an adapter: see `architecture_of`."""


@dataclass(frozen=True)
class Architecture:
    """A model of this pipeline class whose denoiser's configuration has these values, and which predicts this, if that says
    more."""

    pipeline: str
    name: str
    base_version: str
    config: dict[str, Any] = field(default_factory=dict)
    prediction: str | None = None


_CLIP_L, _CLIP_H, _BOTH = ({"cross_attention_dim": width} for width in (768, 1024, 2048))  # the text encoders' widths
ARCHITECTURES = (
    Architecture("StableDiffusionPipeline", "stable-diffusion-v1", "sd_v1", _CLIP_L),
    Architecture("StableDiffusionPipeline", "stable-diffusion-v2-512", "sd_v2", _CLIP_H, "epsilon"),
    Architecture("StableDiffusionPipeline", "stable-diffusion-v2-768-v", "sd_v2_v", _CLIP_H, "v_prediction"),
    Architecture("StableDiffusionXLPipeline", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", _BOTH),
)
OTHER = "other"
"""Architecture of a base model that no row describes, such as the embedded one: no other program has its like."""


def architecture_of(family: Family) -> dict[str, str]:
    """Metadata for adapters of a base model: architecture (a row's name, or `OTHER`) and, where it has one, prediction type."""
    config = family.empty_denoiser().config
    prediction = family.load_noise_schedule().config.get("prediction_type")
    for row in ARCHITECTURES:
        same = row.pipeline == family.pipeline_class.__name__ and all(config.get(k) == v for k, v in row.config.items())
        if same and row.prediction in (None, prediction):
            return {ARCHITECTURE: row.name} | ({PREDICTION: prediction} if prediction else {})
    return {ARCHITECTURE: OTHER} | ({PREDICTION: prediction} if prediction else {})


def base_version(architecture: str) -> str | None:
    """kohya's name, None for `OTHER`."""
    return next((row.base_version for row in ARCHITECTURES if row.name == architecture), None)
