"""Generate: pictures by any adapter, for prompts of one's own."""

from b4m_pipeline.pipelines.generate.pipeline import create_pipeline as create_pipeline
