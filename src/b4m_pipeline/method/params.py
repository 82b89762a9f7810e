"""Parameters of the frame and of merges. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import Strict, Words, with_fields

Side = Literal["lora_A", "lora_B"]
Merge = Literal["sum", "ties", "dare", "svd", "np"]
"""Ways to merge two LoRAs by arithmetic alone (see merge.py)."""


class FrameWords(Strict):
    """Words that the base model knows, by which a frame of words tells content from style."""

    template: Annotated[str, with_fields("content style", "article")]
    """The prompts, with {content}, {style} and, if wanted, {article}."""
    contents: list[Words] = Field(min_length=2)
    """Known contents."""
    styles: list[Words] = Field(min_length=2)
    """Known styles."""


class FrameParams(Strict):
    """The shared frozen part of all adapters that may be recombined (docs/method.md, "One layer")."""

    seed: int = Field(ge=0, lt=2**31)
    """Seed of the frozen matrices."""
    rank: int = Field(ge=2)
    """Rank of the whole adapter; an even number with `init: exact`."""
    alpha: float = Field(gt=0)
    """The adapter is scaled by alpha / rank."""
    split: float = Field(gt=0, lt=1)
    """Share of lora_A's columns and of lora_B's rows that is frozen."""
    init: Literal["exact", "paper"]
    """How the frozen matrices are drawn: so that the start is exactly the base model, or as the paper does."""
    scale: float = Field(gt=0)
    """Factor on the frozen matrices."""
    halves: Literal["orthogonal", "free"]
    """Whether the two halves keep to complementary subspaces."""
    content_side: Side
    """Which matrix has the content's half; the style's half is in the other."""
    basis: Literal["words", "none"]
    """How a layer that reads the prompt is divided between content and style: by the directions in which known words differ, or
    by number, the first columns to the one and the rest to the other."""
    words: FrameWords | None = None
    """The known words of `basis: words`. Halves that were trained with other words do not fit together."""
    targets: list[str] = Field(min_length=1)
    """Ends of module names, as PEFT's target_modules."""

    @model_validator(mode="after")
    def _consistent(self) -> "FrameParams":
        if self.halves == "orthogonal" and self.init == "paper":
            raise ValueError("halves: orthogonal needs init: exact (the paper's frame has no complementary subspaces)")
        if self.basis == "words" and (self.init == "paper" or self.words is None):
            raise ValueError("basis: words needs init: exact, and frame.words")
        if self.init == "exact" and self.rank % 2:
            raise ValueError(f"rank must be even for init: exact, got {self.rank}")
        return self


class MergeParams(Strict):
    """How strongly each of two LoRAs counts in a merge, and what the ways to merge choose."""

    content_weight: float = Field(1.0, ge=0, le=4)
    """Factor on the content's LoRA. 0 takes it away."""
    style_weight: float = Field(1.0, ge=0, le=4)
    """Factor on the style's LoRA. 0 takes it away."""
    rank: int | None = Field(None, ge=1)
    """Rank of the result of ties, dare and svd. Null: the larger of the two LoRAs'."""
    density: float = Field(0.5, gt=0, le=1)
    """Share of the weights that ties and dare keep."""
    np_strength: float = Field(0.5, ge=0)
    """mu of np: how much of the style's directions is taken out of the content."""
