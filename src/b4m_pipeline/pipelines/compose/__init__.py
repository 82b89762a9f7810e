"""Compose: two halves of one frame, or any two LoRAs of one base model, become one adapter."""

from b4m_pipeline.pipelines.compose.pipeline import create_pipeline as create_pipeline
