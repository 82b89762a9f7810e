"""References to two halves in, reconstructed adapter out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines.compose.nodes import fetch_and_join


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                fetch_and_join,
                inputs=["params:compose", "params:frame"],
                outputs="reconstructed_adapter",
                name="fetch_and_join",
            )
        ]
    )
