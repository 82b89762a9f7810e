"""The project's pipelines by name."""

from kedro.pipeline import Pipeline

from b4m_pipeline.pipelines import (
    benchmark,
    compose,
    content_break,
    evaluation,
    generate,
    ingestion,
    joint_make,
    library,
    plp_reconstruction,
    pretrain,
    style_break,
)


def register_pipelines() -> dict[str, Pipeline]:
    """Each pipeline by itself; `break_make` is all that adapts a base model, and the default."""
    stages = {
        "ingestion": ingestion,
        "content_break": content_break,
        "style_break": style_break,
        "plp_reconstruction": plp_reconstruction,
        "joint_make": joint_make,
        "evaluation": evaluation,
    }
    pipelines = {name: module.create_pipeline() for name, module in stages.items()}
    break_make = sum(pipelines.values(), start=Pipeline([]))
    return pipelines | {
        "compose": compose.create_pipeline(),
        "generate": generate.create_pipeline(),
        "library": library.create_pipeline(),
        "benchmark": benchmark.create_pipeline(),
        "pretrain": pretrain.create_pipeline(),
        "pretrain_further": pretrain.create_further_pipeline(),
        "pretrain_report": pretrain.create_report_pipeline(),
        "break_make": break_make,
        "__default__": break_make,
    }
