"""One template for both breaks: they differ by data and by the half that they train."""

from functools import partial, update_wrapper
from pathlib import Path
from typing import Literal

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.common.config import BaseModelParams, BreakParams, ConceptParams, FrameParams


def train_half(
    training_set,
    base_model: BaseModelParams,
    frame: FrameParams,
    concept: ConceptParams,
    training: BreakParams,
    seed: int,
    checkpoints: str,
    reuse: bool,
    *,
    kind: Literal["content", "style"],
):
    """Train the half of `kind`, unless the registry has one that was made from the same; returns the half and its loss curve
    (a row a step)."""
    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.common.memory import reported_peak
    from b4m_pipeline.datasets.registry import find_known
    from b4m_pipeline.registry.tracking import MetricLogger, log_picture, loss_curve
    from b4m_pipeline.training import stages

    checkpoint = Path(checkpoints) / f"{kind}_break-{concept.name}.safetensors"
    device = pick_device(training.device)
    with MetricLogger(f"{kind}_break") as log, reported_peak(f"{kind} break", device, log):
        half, history = stages.train_half(
            kind, training_set, base_model, frame, concept, training, seed, checkpoint, log, find_known(reuse), log_picture
        )
    return half, loss_curve(history, half, f"{kind}_break")


def break_pipeline(kind: Literal["content", "style"]) -> Pipeline:
    """The break of `kind` in its own namespace; data and adapter keep their names."""
    func = update_wrapper(partial(train_half, kind=kind), train_half)
    train = Node(
        func,
        inputs=[
            "training_set",
            "params:base_model",
            "params:frame",
            f"params:{kind}",
            "params:training",
            "params:seed",
            "params:checkpoints",
            "params:reuse",
        ],
        outputs=[f"{kind}_adapter", "loss_curve"],
        name="train_half",
        tags=["training"],
    )
    return Pipeline(
        [train],
        namespace=f"{kind}_break",
        inputs={"training_set"},
        outputs={f"{kind}_adapter"},
        parameters={
            "params:base_model": "params:base_model",
            "params:frame": "params:frame",
            f"params:{kind}": f"params:{kind}",
            "params:seed": "params:seed",
            "params:checkpoints": "params:checkpoints",
            "params:reuse": "params:reuse",
            "params:training": f"params:{kind}_break",
        },
    )
