"""Adapters and references in, pictures, figures and the contact sheet out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines import params
from b4m_pipeline.pipelines.evaluation.nodes import (
    collect_references,
    draw_contact_sheet,
    draw_samples,
    draw_strengths,
    measure_samples,
)


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                draw_samples,
                inputs=[
                    *("content_adapter", "style_adapter", "reconstructed_adapter", "made_adapter", "manifest"),
                    *params("base_model", "captioning", "evaluation", "seed"),
                ],
                outputs=["sample_pictures", "samples"],
                name="draw_samples",
            ),
            Node(
                collect_references,
                inputs=["manifest", "pictures", "made_adapter", "params:base_model", "params:evaluation"],
                outputs="references",
                name="collect_references",
            ),
            Node(
                measure_samples,
                inputs=[
                    *("samples", "sample_pictures", "references", "made_adapter", "manifest"),
                    *params("captioning", "evaluation", "seed"),
                ],
                outputs=["measured_samples", "evaluation_summary"],
                name="measure_samples",
            ),
            Node(
                draw_contact_sheet,
                inputs=["samples", "sample_pictures", "references", "evaluation_summary", "made_adapter"],
                outputs="contact_sheet",
                name="draw_contact_sheet",
            ),
            Node(
                draw_strengths,
                inputs=["made_adapter", *params("base_model", "evaluation", "seed")],
                outputs="strength_sheet",
                name="draw_strengths",
            ),
        ]
    )
