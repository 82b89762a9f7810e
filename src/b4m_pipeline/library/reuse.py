"""Train a stage, unless the registry has the result of the same recipe; what a break goes on from."""

from pathlib import Path

import pandas as pd

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.memory import reported_peak
from b4m_pipeline.method.adapter import Adapter, AdapterError
from b4m_pipeline.registry.adapters import RegistrationError, fetch_adapter, find_same
from b4m_pipeline.registry.tracking import MetricLogger, log_picture, logged_curve
from b4m_pipeline.training.checkpoint_files import checkpoint_file
from b4m_pipeline.training.parallel import train
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.stages import Stage, TrainingIO
from b4m_pipeline.training.starts import StartError

Outcome = tuple[Adapter, pd.DataFrame]
"""An adapter and its loss curve, a row a step."""


def start_of(params: BreakParams, stage: str) -> Adapter | None:
    """The half that a break goes on from; stage: content_break, style_break. Raises StartError if it cannot be had."""
    if params.start_from is None:
        return None
    try:
        return fetch_adapter(params.start_from)
    except (AdapterError, RegistrationError) as error:
        raise StartError(f"{stage}.start_from: {error}") from error


def train_or_reuse(stage: Stage, checkpoints: str, reuse: bool) -> Outcome:
    """reuse: whether the registry is asked first for an adapter of the same recipe."""
    return (reused(stage) if reuse else None) or trained(stage, checkpoints)


def reused(stage: Stage) -> Outcome | None:
    """The registry's adapter of the same recipe, with the curve that its run logged. None if there is none."""
    found = find_same(stage.recipe)
    return (found, logged_curve(found, stage.name)) if found else None


def trained(stage: Stage, checkpoints: str) -> Outcome:
    """The stage's adapter, trained now."""
    checkpoint = checkpoint_file(Path(checkpoints), stage.name, stage.concept_name)
    with MetricLogger(stage.name) as log, reported_peak(stage.name, pick_device(stage.params.device), log):
        adapter, history = train(stage, TrainingIO(checkpoint, log, log_picture))
    return adapter, pd.DataFrame(history).rename_axis("step").reset_index()
