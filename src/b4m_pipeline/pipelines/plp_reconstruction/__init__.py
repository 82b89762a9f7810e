"""PLP reconstruction: the content's half and the style's half become one adapter."""

from b4m_pipeline.pipelines.plp_reconstruction.pipeline import create_pipeline as create_pipeline
