"""Train a stage, unless the registry has the result of the same recipe."""

from pathlib import Path

import pandas as pd

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.memory import reported_peak
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.registry.adapters import find_same
from b4m_pipeline.registry.tracking import MetricLogger, log_picture, logged_curve
from b4m_pipeline.training.checkpoint_files import checkpoint_file
from b4m_pipeline.training.stages import Stage, TrainingIO


def train_or_reuse(stage: Stage, checkpoints: str, reuse: bool) -> tuple[Adapter, pd.DataFrame]:
    """The stage's adapter and its loss curve, a row a step. reuse: whether the registry is asked for an adapter of the same
    recipe, whose curve is then the one that its run logged."""
    if reuse and (found := find_same(stage.recipe)):
        return found, logged_curve(found, stage.name)
    checkpoint = checkpoint_file(Path(checkpoints), stage.name, stage.concept_name)
    with MetricLogger(stage.name) as log, reported_peak(stage.name, pick_device(stage.params.device), log):
        adapter, history = stage.train(TrainingIO(checkpoint, log, log_picture))
    return adapter, pd.DataFrame(history).rename_axis("step").reset_index()
