"""Break: train the content's half of the adapter, with the other half on counterpart styles."""

from b4m_pipeline.pipelines.content_break.pipeline import create_pipeline as create_pipeline
