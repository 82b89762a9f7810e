"""Parameters of the base model and of drawing. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import LARGEST_SIDE, PathText, Strict
from b4m_pipeline.method.adapter import BASE_DETAILS

FamilyName = Literal["StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "Flux2Klein", "ZImage", "QwenImage"]
"""Classes of `families`, which cannot be imported here."""


class BaseModelParams(Strict):
    """The text-to-image model that is customised."""

    path: PathText
    """Local folder in diffusers' format, a Hugging Face Hub id, or one .safetensors or .gguf file as model sites share it."""
    family: FamilyName | None = None
    """The family that the environment's other settings are for: a model of another one is refused. Null: any."""
    config: PathText | None = None
    """Where a single file's configuration comes from, and what it lacks: a folder in diffusers' format, or a Hub id. Null: the
    model of the Hub that the file is a version of."""
    revision: str | None = None
    """Revision of the Hub id: a commit, a tag or a branch. Null: the newest, or a local folder."""
    vae: PathText | None = None
    """Another VAE: path, Hub id or id@revision. Null: the base model's own."""
    variant: str | None = None
    """Variant of the weights' files, e.g. fp16. Null: the plain ones."""
    quantization: Literal["int8", "nf4"] | None = None
    """Hold the frozen denoiser and large text encoders in 8 bits (int8, LLM.int8) or 4 (nf4, as QLoRA), which needs the package
    bitsandbytes: extra `quantization`. Adapters stay in float32. Null: the weights' own number format."""
    offload: Literal["model", "group"] | None = None
    """On an NVIDIA GPU, while images are drawn and prompts encoded: bring one part of the model there at a time (model: text
    encoder, denoiser, VAE), or one layer at a time (group: the least memory, slower). Null: all of it stays there."""
    resolution: int = Field(128, ge=8, le=LARGEST_SIDE, multiple_of=8)
    """Pixels a side of training pictures and of images."""

    @model_validator(mode="after")
    def _one_way_to_save(self) -> "BaseModelParams":
        if self.quantization and self.offload == "group":
            raise ValueError("offload: group is not for quantised weights: use offload: model, or quantization: null")
        return self

    def details(self) -> dict[str, str]:
        """What names the model beside its path, as adapters keep it (see `method.adapter.BASE_DETAILS`); folders in full."""
        given = self.model_dump(include=set(BASE_DETAILS), exclude_none=True)
        return {f"base_{key}": str(Path(value).resolve()) if Path(value).is_dir() else value for key, value in given.items()}


class GenerateParams(Strict):
    """Pictures by an adapter, for prompts of one's own."""

    adapter: PathText | None
    """models:/NAME@ALIAS or models:/NAME/VERSION in the registry, or a folder. Null: the base model alone."""
    content_scale: float = Field(1.0, ge=0, le=4)
    """Strength of the content's half: 1 as trained, 0 without it."""
    style_scale: float = Field(1.0, ge=0, le=4)
    """Strength of the style's half: 1 as trained, 0 without it."""
    prompts: list[str] | None
    """What is drawn. Null: the prompt that the adapter was made for, or those of the file alone."""
    prompts_file: PathText | None = None
    """File with further prompts, one a line. Null: none."""
    negative_prompt: str | None = None
    """What the images are to be unlike, for all prompts. Null: nothing."""
    images_per_prompt: int = Field(6, ge=1, le=10_000)
    """Images of each prompt; their seeds are `seed`, `seed` + 1, and so on."""
    steps: int = Field(20, ge=1)
    """Denoising steps of an image."""
    guidance_scale: float = Field(2.0, ge=0, le=100)
    """Strength of guidance, as the base model's pipeline takes it; 1: none, as a rule."""
    batch_size: int = Field(12, ge=1)
    """Images that are drawn at once."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto: on a GPU where there is one, NVIDIA's (cuda) or Apple's (mps)."""

    @model_validator(mode="after")
    def _something_to_draw(self) -> "GenerateParams":
        own = self.prompts is None and self.adapter is not None
        if not self.prompts and not self.prompts_file and not own:
            raise ValueError("name what to draw: prompts, or prompts_file with a prompt a line")
        if self.adapter is None and (self.content_scale, self.style_scale) != (1.0, 1.0):
            raise ValueError("content_scale and style_scale need an adapter")
        return self
