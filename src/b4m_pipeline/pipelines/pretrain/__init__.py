"""Pretrain: make the embedded base model from the emoji corpus."""

from b4m_pipeline.pipelines.pretrain.pipeline import create_further_pipeline, create_pipeline, create_report_pipeline

__all__ = ["create_further_pipeline", "create_pipeline", "create_report_pipeline"]
