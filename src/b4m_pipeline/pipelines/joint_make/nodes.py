"""Nodes of the joint make fine-tuning."""

from pathlib import Path

import pandas as pd

from b4m_pipeline.config import BaseModelParams, FrameParams, MakeParams


def make_adapter(
    reconstructed_adapter,
    training_set,
    base_model: BaseModelParams,
    frame: FrameParams,
    make: MakeParams,
    seed: int,
    checkpoints: str,
):
    """Fine-tune both learnable parts together; returns the made adapter and its loss curve (a row a step)."""
    from b4m_pipeline import stages
    from b4m_pipeline.devices import pick_device
    from b4m_pipeline.memory import reported_peak
    from b4m_pipeline.tracking import MetricLogger

    checkpoint = Path(checkpoints) / f"joint_make-{reconstructed_adapter.metadata['name']}.safetensors"
    with MetricLogger("joint_make") as log, reported_peak("make", pick_device(make.device), log):
        made, history = stages.train_make(reconstructed_adapter, training_set, base_model, frame, make, seed, checkpoint, log)
    return made, pd.DataFrame(history).rename_axis("step").reset_index()
