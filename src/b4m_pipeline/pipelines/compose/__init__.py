"""Compose: any content half and any style half of one frame, from the registry, become one adapter."""

from b4m_pipeline.pipelines.compose.pipeline import create_pipeline as create_pipeline
