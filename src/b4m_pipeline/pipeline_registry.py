"""The project's pipelines by name."""

from importlib import import_module

from kedro.pipeline import Pipeline

STAGES = ("ingestion", "content_break", "style_break", "plp_reconstruction", "joint_make", "evaluation")
"""What adapts a base model, in order: together they are `break_make`."""


def register_pipelines() -> dict[str, Pipeline]:
    """Each pipeline by itself (its package is its name); `break_make` is the default."""

    def module(name: str):
        return import_module(f"b4m_pipeline.pipelines.{name}")

    names = (*STAGES, "compose", "generate", "library", "benchmark", "pretrain")
    found = {name: module(name).create_pipeline() for name in names}
    found["pretrain_further"] = module("pretrain").create_further_pipeline()
    found["pretrain_report"] = module("pretrain").create_report_pipeline()
    break_make = sum((found[name] for name in STAGES), start=Pipeline([]))
    return found | {"break_make": break_make, "__default__": break_make}
