"""The break template in the namespace `style_break`."""

from kedro.pipeline import Pipeline

from b4m_pipeline.pipelines.break_template import break_pipeline


def create_pipeline(**kwargs) -> Pipeline:
    return break_pipeline("style")
