"""Nodes of the joint make fine-tuning."""

from pathlib import Path

from b4m_pipeline.common.config import BaseModelParams, FrameParams, MakeParams


def make_adapter(
    reconstructed_adapter,
    training_set,
    base_model: BaseModelParams,
    frame: FrameParams,
    make: MakeParams,
    seed: int,
    checkpoints: str,
    reuse: bool,
):
    """Fine-tune both learnable parts together, unless the registry has the result of the same; returns the made adapter and its
    loss curve (a row a step)."""
    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.common.memory import reported_peak
    from b4m_pipeline.datasets.registry import find_known
    from b4m_pipeline.registry.tracking import MetricLogger, log_picture, loss_curve
    from b4m_pipeline.training import stages

    checkpoint = Path(checkpoints) / f"joint_make-{reconstructed_adapter.metadata['name']}.safetensors"
    with MetricLogger("joint_make") as log, reported_peak("make", pick_device(make.device), log):
        made, history = stages.train_make(
            reconstructed_adapter,
            training_set,
            base_model,
            frame,
            make,
            seed,
            checkpoint,
            log,
            find_known(reuse),
            log_picture,
        )
    return made, loss_curve(history, made, "joint_make")
