"""Parameters of the base model and of drawing. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import Strict


class BaseModelParams(Strict):
    """The text-to-image model that is customised."""

    path: str
    """Local folder in diffusers' format, or a Hugging Face Hub id."""
    revision: str | None = None
    vae: str | None = None
    """Another VAE: path, Hub id or id@revision, e.g. madebyollin/sdxl-vae-fp16-fix."""
    variant: str | None = None
    """Weight variant, e.g. fp16."""
    resolution: int = Field(128, ge=8, multiple_of=8)
    """Pixels a side."""


class GenerateParams(Strict):
    """Pictures by an adapter, for prompts of one's own."""

    adapter: str | None = None
    """models:/NAME@ALIAS or models:/NAME/VERSION in the registry, or a folder; None: the base model alone."""
    content_scale: float = Field(1.0, ge=0, le=4)
    """Factor on the content's half. 0 takes it away."""
    style_scale: float = Field(1.0, ge=0, le=4)
    prompts: list[str] = []
    prompts_file: str | None = None
    """Further prompts, a line each."""
    negative_prompt: str | None = None
    images_per_prompt: int = Field(4, ge=1)
    """Their seeds are seed, seed + 1, ... for every prompt."""
    steps: int = Field(20, ge=1)
    guidance_scale: float = Field(3.0, ge=0)
    batch_size: int = Field(8, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _something_to_draw(self) -> "GenerateParams":
        if not self.prompts and not self.prompts_file:
            raise ValueError("name what to draw: prompts, or prompts_file with a prompt a line")
        if self.adapter is None and (self.content_scale, self.style_scale) != (1.0, 1.0):
            raise ValueError("content_scale and style_scale need an adapter")
        return self
