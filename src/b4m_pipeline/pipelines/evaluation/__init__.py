"""Evaluation: pictures of every stage side by side, measured against references and, where it exists, the truth."""

from b4m_pipeline.pipelines.evaluation.pipeline import create_pipeline as create_pipeline
