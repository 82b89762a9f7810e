"""Folders of pictures -> checked, captioned and encoded training set."""

from b4m_pipeline.pipelines.ingestion.pipeline import create_pipeline as create_pipeline
