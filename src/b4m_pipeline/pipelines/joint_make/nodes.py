"""Nodes of the joint make fine-tuning."""

import pandas as pd

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import MakeParams


def make_adapter(
    reconstructed_adapter: Adapter,
    training_set: TrainingSet,
    base_model: BaseModelParams,
    frame: FrameParams,
    make: MakeParams,
    seed: int,
    checkpoints: str,
    reuse: bool,
) -> tuple[Adapter, pd.DataFrame]:
    """Fine-tune both learnable parts together, unless the registry has the result of the same recipe; returns the made adapter
    and its loss curve (a row a step)."""
    from b4m_pipeline.library.reuse import train_or_reuse
    from b4m_pipeline.training.stages import MakeStage

    stage = MakeStage(reconstructed_adapter, training_set, base_model, frame, make, seed)
    return train_or_reuse(stage, checkpoints, reuse)
