"""Halves in, reconstructed adapter out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines.plp_reconstruction.nodes import join_halves


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                join_halves,
                inputs=["content_adapter", "style_adapter", "params:frame"],
                outputs="reconstructed_adapter",
                name="join_halves",
            )
        ]
    )
