"""Benchmark: every method on every pair, and the report on it."""

from b4m_pipeline.pipelines.benchmark.pipeline import create_pipeline as create_pipeline
