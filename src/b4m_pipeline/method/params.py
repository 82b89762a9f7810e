"""Parameters of the frame. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import Strict

Side = Literal["lora_A", "lora_B"]


class FrameParams(Strict):
    """The shared frozen part of all adapters that may be recombined (docs/method.md, "One layer")."""

    seed: int = 0
    rank: int = Field(ge=2)
    alpha: float = Field(gt=0)
    split: float = Field(0.5, gt=0, lt=1)
    init: Literal["exact", "paper"] = "exact"
    scale: float = Field(1.0, gt=0)
    """Factor on F_A and F_B."""
    halves: Literal["orthogonal", "free"] = "orthogonal"
    content_side: Side = "lora_A"
    targets: list[str] = Field(min_length=1)
    """Ends of module names, as PEFT's target_modules."""

    @model_validator(mode="after")
    def _consistent(self) -> "FrameParams":
        if self.halves == "orthogonal" and self.init == "paper":
            raise ValueError("halves: orthogonal needs init: exact (the paper's frame has no complementary subspaces)")
        if self.init == "exact" and self.rank % 2:
            raise ValueError(f"rank must be even for init: exact, got {self.rank}")
        return self
