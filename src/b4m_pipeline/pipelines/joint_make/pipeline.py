"""Reconstructed adapter and training set in, rehearsal and made adapter out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines import params
from b4m_pipeline.pipelines.joint_make.nodes import make_adapter, rehearse


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                rehearse,
                inputs=[
                    *("reconstructed_adapter", "training_set", "manifest", "pictures"),
                    *params("base_model", "ingestion", "captioning", "make", "evaluation", "seed", "encoding_cache"),
                ],
                outputs="rehearsed_training_set",
                name="rehearse",
            ),
            Node(
                make_adapter,
                inputs=[
                    *("reconstructed_adapter", "rehearsed_training_set", "manifest", "pictures"),
                    *params("base_model", "frame", "captioning", "make", "evaluation", "seed", "checkpoints", "reuse"),
                ],
                outputs=["made_adapter", "make_loss_curve"],
                name="make_adapter",
                tags=["training"],
            ),
        ]
    )
