"""Prompts in, pictures out."""

from kedro.pipeline import Node, Pipeline

from b4m_pipeline.pipelines.generate.nodes import draw_prompts


def create_pipeline(**kwargs) -> Pipeline:
    return Pipeline(
        [
            Node(
                draw_prompts,
                inputs=["params:generate", "params:base_model", "params:seed"],
                outputs=["generated_pictures", "generated_sheet"],
                name="draw_prompts",
            )
        ]
    )
