"""Parameters of evaluation. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Annotated, Literal

from pydantic import Field

from b4m_pipeline.common.config import PathText, Strict, with_fields


class EvaluationParams(Strict):
    """What is drawn and how it is judged. Prompts may hold {content} and {style} (the concepts' words), {noun} (the
    content's) and {article} (a or an, for the content)."""

    prompts: list[Annotated[str, with_fields("content style", "noun article")]] = Field(min_length=1)
    """With {content} and {style} both. The first one is measured against the true drawing; further ones may say more."""
    content_prompt: Annotated[str, with_fields("content", "style noun article")]
    """For the content's half alone, with {content}."""
    style_prompt: Annotated[str, with_fields("style", "content noun article")]
    """For the style's half alone, with {style}; {noun} is the style's."""
    samples: int = Field(ge=1, le=10_000)
    """Images of each prompt by each system; their seeds are `seed`, `seed` + 1, and so on."""
    steps: int = Field(ge=1)
    """Denoising steps of an image."""
    guidance_scale: float = Field(ge=0, le=100)
    """Strength of guidance, as the base model's pipeline takes it; 1: none, as a rule."""
    batch_size: int = Field(ge=1)
    """Images that are drawn at once."""
    truth_path: Annotated[PathText, with_fields("", "content style")] | None
    """Folder with the true drawings of this content in this style, with {content} and {style} for their names; read by
    evaluation alone, and only if it is there. Null: none."""
    clip: PathText | None
    """Path or Hub id of a CLIP model as second judge, the one that also reads prompts. Null: none."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto: on a GPU where there is one, NVIDIA's (cuda) or Apple's (mps)."""
