"""Library: a table of contents and styles becomes registered halves, and pairs of them, without further training."""

from b4m_pipeline.pipelines.library.pipeline import create_pipeline as create_pipeline
