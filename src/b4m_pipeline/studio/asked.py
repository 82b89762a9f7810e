"""What the page may ask for, with bounds. Adapters are versions of the registry: no path reaches the code that reads files."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import Name, Strict

VERSION = r"^models:/[^/@]+/[0-9]+$"
Uri = Annotated[str, Field(pattern=VERSION, max_length=300)]
Way = Literal["halves", "make", "sum", "ties", "dare", "svd", "np", "alone"]
"""How a picture's adapter comes about: two halves joined, a made adapter, a merge, or one adapter as it is."""
PAIRED = ("halves", "sum", "ties", "dare", "svd", "np")
Strength = Annotated[float, Field(ge=0, le=4, allow_inf_nan=False)]
MOST_DRAWN = 64


class CardsRequest(Strict):
    """Which of the registry's adapters. words: parts of what stands on their cards; frame: its beginning; content, style: names
    of what they are of; ours: of the studio's base model alone; older: also versions that are neither the newest of their name
    nor have an alias; after: of the page before."""

    words: str = Field("", max_length=200)
    kind: Literal["content", "style", "joined", "make", "merged"] | None = None
    frame: str | None = Field(None, max_length=64)
    content: str | None = Field(None, max_length=300)
    style: str | None = Field(None, max_length=300)
    ours: bool = False
    older: bool = False
    limit: int = Field(60, ge=1, le=500)
    after: str | None = Field(None, max_length=2000)


class DrawingRequest(Strict):
    """Pictures of one prompt: each way with each seed, or one way and seed in a grid of strengths."""

    content: Uri | None = None
    style: Uri | None = None
    adapter: Uri | None = None
    """Of the ways make and alone."""
    ways: list[Way] = Field(min_length=1, max_length=8)
    prompt: str = Field(min_length=1, max_length=1000, pattern=r"\S")
    negative_prompt: str = Field("", max_length=1000)
    seed: int = Field(0, ge=0, lt=2**31)
    images: int = Field(1, ge=1, le=16)
    """Their seeds are `seed`, `seed` + 1, and so on."""
    steps: int = Field(ge=1, le=100)
    guidance_scale: float = Field(ge=0, le=30, allow_inf_nan=False)
    content_strength: Strength = 1.0
    style_strength: Strength = 1.0
    grid: list[Strength] = Field([], max_length=7)
    """Strengths of content, from left to right, and of style, from top to bottom. Empty: no grid."""
    card: bool = False
    """Whether the first picture becomes the adapter's card in the library."""

    @model_validator(mode="after")
    def _whole(self) -> "DrawingRequest":
        if len(set(self.ways)) < len(self.ways):
            raise ValueError(f"ways names one twice: {self.ways}")
        if any(way in PAIRED for way in self.ways) and not (self.content and self.style):
            raise ValueError("choose a content and a style")
        if any(way not in PAIRED for way in self.ways) and not self.adapter:
            raise ValueError("this pair has no made adapter: train it, or choose another method")
        if self.grid and (len(self.ways) > 1 or len(set(self.grid)) < len(self.grid)):
            raise ValueError("a grid of strengths has one method, and each strength once")
        if self.number > MOST_DRAWN:
            raise ValueError(f"{self.number} pictures at once: at most {MOST_DRAWN} are drawn")
        return self

    @property
    def number(self) -> int:
        return len(self.grid) ** 2 or len(self.ways) * self.images


class ConceptRequest(Strict):
    """A folder of pictures of a content or a style; what is left out is the project's default."""

    path: str = Field(min_length=1, max_length=1000)
    noun: str | None = Field(None, min_length=1, max_length=60, pattern=r"^[^\x00-\x1f,]*\S[^\x00-\x1f,]*$")
    name: Name | None = Field(None, max_length=60)
    token: str | None = Field(None, min_length=1, max_length=30, pattern=r"^\S+$")

    def given(self) -> dict[str, str]:
        return self.model_dump(exclude_none=True)


class PairRequest(Strict):
    """What is to be trained."""

    content: ConceptRequest
    style: ConceptRequest


class RunRequest(PairRequest):
    """A run of break_make. steps: of both breaks and of make; previews: steps between pictures while it trains, 0: none."""

    break_steps: int = Field(ge=1, le=100_000)
    make_steps: int = Field(ge=1, le=100_000)
    previews: int = Field(0, ge=0, le=100_000)
    seed: int = Field(0, ge=0, lt=2**31)


class CaptionRequest(Strict):
    """The words beside a picture; empty: none, so that the project's captioning decides again."""

    folder: str = Field(min_length=1, max_length=1000)
    file: str = Field(min_length=1, max_length=300)
    text: str = Field(max_length=2000)


class ExportRequest(Strict):
    """A file for other programs."""

    name: Name = Field(min_length=1, max_length=80)
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    author: str | None = Field(None, max_length=200)
    license: str | None = Field(None, max_length=200)


class VersionRequest(Strict):
    """A version of the registry."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[^/@]+$")
    version: str = Field(pattern=r"^[0-9]+$", max_length=10)
