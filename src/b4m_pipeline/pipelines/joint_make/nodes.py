"""Nodes of the joint make fine-tuning."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.captions import plain_captions
from b4m_pipeline.inputs.folders import Picture
from b4m_pipeline.inputs.params import CaptioningParams, IngestionParams
from b4m_pipeline.inputs.prepare import own_pictures, references
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import MakeParams

if TYPE_CHECKING:
    from b4m_pipeline.evaluation.guard import MakeGuard


def rehearse(
    reconstructed_adapter: Adapter,
    training_set: TrainingSet,
    manifest: pd.DataFrame,
    pictures: Mapping[str, Picture],
    base_model: BaseModelParams,
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    make: MakeParams,
    evaluation: EvaluationParams,
    seed: int,
    encoding_cache: str | None,
) -> TrainingSet:
    """The training set with pictures of the content in the style that the joined halves draw; as it was if `make.rehearsal` is
    null. A sheet of them goes to MLflow."""
    if make.rehearsal is None:
        return training_set
    from b4m_pipeline.common.sheets import Row, paint_grid
    from b4m_pipeline.registry.tracking import log_picture
    from b4m_pipeline.training import rehearsal

    shown = [references(manifest, pictures, role) for role in ("content", "style")]
    prefer = _guard(manifest, pictures, base_model, captioning, evaluation, seed).prefer
    folder = rehearsal.rehearse(reconstructed_adapter, *shown, base_model, make.rehearsal, seed, prefer)
    joined_set, rehearsed = rehearsal.with_rehearsal(
        training_set, manifest, pictures, folder, reconstructed_adapter, base_model, ingestion, captioning, encoding_cache
    )
    log_picture(paint_grid([Row("rehearsal", rehearsed.references("union"), str(folder))]), "rehearsal")
    return joined_set


def make_adapter(
    reconstructed_adapter: Adapter,
    rehearsed_training_set: TrainingSet,
    manifest: pd.DataFrame,
    pictures: Mapping[str, Picture],
    base_model: BaseModelParams,
    frame: FrameParams,
    captioning: CaptioningParams,
    make: MakeParams,
    evaluation: EvaluationParams,
    seed: int,
    checkpoints: str,
    reuse: bool,
) -> tuple[Adapter, pd.DataFrame]:
    """Fine-tune both learnable parts together, unless the registry has the result of the same recipe; returns the adapter that
    the guard keeps, and the loss curve (a row a step)."""
    from b4m_pipeline.library.reuse import train_or_reuse
    from b4m_pipeline.training.stages import MakeStage

    guard = _guard(manifest, pictures, base_model, captioning, evaluation, seed) if make.keep == "best" else None
    stage = MakeStage(reconstructed_adapter, rehearsed_training_set, base_model, frame, make, seed, guard)
    return train_or_reuse(stage, checkpoints, reuse)


def _guard(
    manifest: pd.DataFrame,
    pictures: Mapping[str, Picture],
    base_model: BaseModelParams,
    captioning: CaptioningParams,
    evaluation: EvaluationParams,
    seed: int,
) -> "MakeGuard":
    from b4m_pipeline.evaluation.guard import MakeGuard

    shown = [references(manifest, pictures, role) for role in ("content", "style")]
    return MakeGuard(base_model, evaluation, *shown, plain_captions(own_pictures(manifest, "style"), captioning), seed)
