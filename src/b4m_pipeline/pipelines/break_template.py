"""One template for both breaks: they differ by data and by the half that they train."""

from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Literal

import pandas as pd
from kedro.pipeline import Node, Pipeline

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines import params
from b4m_pipeline.training.params import BreakParams

if TYPE_CHECKING:
    from b4m_pipeline.training.stages import BreakStage

Kind = Literal["content", "style"]
BREAKS: dict[str, Kind] = {"content_break.train_half": "content", "style_break.train_half": "style"}
"""Names of both breaks' nodes."""


def train_half(
    training_set: TrainingSet,
    base_model: BaseModelParams,
    frame: FrameParams,
    concept: ConceptParams,
    training: BreakParams,
    seed: int,
    checkpoints: str,
    reuse: bool,
    *,
    kind: Kind,
) -> tuple[Adapter, pd.DataFrame]:
    """Train the half of `kind`, unless the registry has one of the same recipe; returns the half and its loss curve (a row a
    step)."""
    from b4m_pipeline.library.reuse import train_or_reuse

    stage = stage_of(training_set, base_model, frame, concept, training, seed, kind=kind)
    return train_or_reuse(stage, checkpoints, reuse)


def stage_of(
    training_set: TrainingSet,
    base_model: BaseModelParams,
    frame: FrameParams,
    concept: ConceptParams,
    training: BreakParams,
    seed: int,
    *,
    kind: Kind,
) -> "BreakStage":
    """The training of the half of `kind`. Raises StartError if what it is to go on from cannot be had."""
    from b4m_pipeline.library.reuse import start_of
    from b4m_pipeline.training.stages import BreakStage

    return BreakStage(kind, training_set, base_model, frame, concept, training, seed, start_of(training, f"{kind}_break"))


def break_pipeline(kind: Kind) -> Pipeline:
    """The break of `kind` in its own namespace; data and adapter keep their names."""
    func = update_wrapper(partial(train_half, kind=kind), train_half)
    train = Node(
        func,
        inputs=["training_set", *params("base_model", "frame", kind, "training", "seed", "checkpoints", "reuse")],
        outputs=[f"{kind}_adapter", "loss_curve"],
        name="train_half",
        tags=["training"],
    )
    return Pipeline(
        [train],
        namespace=f"{kind}_break",
        inputs={"training_set"},
        outputs={f"{kind}_adapter"},
        parameters={name: name for name in params("base_model", "frame", kind, "seed", "checkpoints", "reuse")}
        | {"params:training": f"params:{kind}_break"},
    )
