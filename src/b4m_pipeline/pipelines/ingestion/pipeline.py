"""`ingestion`: have counterparts drawn, check pictures, caption them, show them, encode them once."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines import params
from b4m_pipeline.pipelines.ingestion.nodes import (
    caption_pictures,
    check_pictures,
    draw_counterparts,
    draw_input_sheet,
    encode_pictures,
)


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                draw_counterparts,
                inputs=params("counterparts", "base_model", "content", "style"),
                outputs="counterparts",
                name="draw_counterparts",
            ),
            Node(
                check_pictures,
                inputs=[*params("content", "style"), "counterparts", *params("make", "base_model", "ingestion")],
                outputs=["checked_pictures", "checked_manifest", "quarantine"],
                name="check_pictures",
            ),
            Node(
                caption_pictures,
                inputs=["checked_manifest", "checked_pictures", *params("ingestion", "captioning", "style", "base_model")],
                outputs=["manifest", "pictures"],
                name="caption_pictures",
            ),
            Node(draw_input_sheet, inputs=["manifest", "pictures"], outputs="input_sheet", name="draw_input_sheet"),
            Node(
                encode_pictures,
                inputs=[
                    *("manifest", "pictures", *params("base_model", "preservation", "content", "style")),
                    *("counterparts", *params("content_break", "style_break", "seed", "encoding_cache")),
                ],
                outputs="training_set",
                name="encode_pictures",
            ),
        ]
    )
