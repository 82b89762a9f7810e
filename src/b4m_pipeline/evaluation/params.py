"""Parameters of evaluation. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import Strict, template_fields


class EvaluationParams(Strict):
    """What is drawn and how it is judged. Prompts may hold {content} and {style} (the concepts' words), {noun} (the
    content's) and {article} (a or an, for the content)."""

    prompts: list[str] = Field(min_length=1)
    """With {content} and {style} both. The first one is measured against the true drawing; further ones may say more."""
    content_prompt: str
    """For the content's half alone, with {content}."""
    style_prompt: str
    """For the style's half alone, with {style}; {noun} is the style's."""
    samples: int = Field(ge=1)
    """Images of each prompt by each system; their seeds are `seed`, `seed` + 1, and so on."""
    steps: int = Field(ge=1)
    """Denoising steps of an image."""
    guidance_scale: float = Field(ge=0)
    """Strength of classifier-free guidance; 1: none."""
    batch_size: int = Field(ge=1)
    """Images that are drawn at once."""
    truth_path: str | None
    """Folder with the true drawings of this content in this style, with {content} and {style} for their names; read by
    evaluation alone, and only if it is there. Null: none."""
    clip: str | None
    """Path or Hub id of a CLIP model as second judge, the one that also reads prompts. Null: none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto: on a GPU where there is one."""

    @model_validator(mode="after")
    def _prompts_fit(self) -> "EvaluationParams":
        wanted = [(f"prompts[{i}]", prompt, {"content", "style"}) for i, prompt in enumerate(self.prompts)]
        wanted += [("content_prompt", self.content_prompt, {"content"}), ("style_prompt", self.style_prompt, {"style"})]
        for field, prompt, needed in wanted:
            used = template_fields(prompt)
            if not needed <= used <= {"content", "style", "noun", "article"}:
                raise ValueError(f"{field} must hold {sorted(needed)} in braces, and may hold noun and article; got {prompt!r}")
        if self.truth_path and not template_fields(self.truth_path) <= {"content", "style"}:
            raise ValueError(f"truth_path may hold {{content}} and {{style}} alone in braces; got {self.truth_path!r}")
        return self
