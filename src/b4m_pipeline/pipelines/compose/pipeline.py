"""References to two LoRAs in; the joined halves, the merges and a sheet of them out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines import params
from b4m_pipeline.pipelines.compose.nodes import fetch_and_compose


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                fetch_and_compose,
                inputs=params("compose", "frame", "base_model", "make", "generate", "seed"),
                outputs=["reconstructed_adapter", "merged_adapters", "composed_sheets"],
                name="fetch_and_compose",
            )
        ]
    )
