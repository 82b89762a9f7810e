"""Reconstructed adapter and training set in, made adapter out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines import params
from b4m_pipeline.pipelines.joint_make.nodes import make_adapter


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                make_adapter,
                inputs=[
                    *("reconstructed_adapter", "training_set"),
                    *params("base_model", "frame", "make", "seed", "checkpoints", "reuse"),
                ],
                outputs=["made_adapter", "make_loss_curve"],
                name="make_adapter",
                tags=["training"],
            )
        ]
    )
