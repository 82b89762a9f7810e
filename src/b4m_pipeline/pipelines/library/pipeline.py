"""A table in, registered halves and pairs out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines import params
from b4m_pipeline.pipelines.library import nodes


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                nodes.read_library,
                inputs=[
                    *params("library", "content", "style", "counterparts", "base_model", "frame"),
                    *params("content_break", "style_break", "ingestion", "captioning", "preservation", "evaluation"),
                    *params("seed", "checkpoints", "reuse", "encoding_cache"),
                ],
                outputs=["library_entries", "library_wanted_pairs", "library_settings"],
                name="read_library",
            ),
            Node(
                nodes.train_library,
                inputs=["library_entries", "library_settings"],
                outputs=["library_trained", "library_halves"],
                name="train_library",
                tags=["training"],
            ),
            Node(
                nodes.compose_library,
                inputs=["library_entries", "library_wanted_pairs", "library_trained", "library_settings"],
                outputs=["library_composed", "library_pairs"],
                name="compose_library",
            ),
            Node(
                nodes.show_library,
                ["library_entries", "library_composed", "library_settings"],
                "library_sheet",
                name="show_library",
            ),
            Node(nodes.require_all, ["library_trained", "library_composed", "library_sheet"], None, name="require_all"),
        ]
    )
