"""Break: train the style's half of the adapter, with the other half on counterpart contents."""

from b4m_pipeline.pipelines.style_break.pipeline import create_pipeline as create_pipeline
