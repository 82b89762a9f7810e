"""Make: short joint fine-tuning of the reconstructed adapter."""

from b4m_pipeline.pipelines.joint_make.pipeline import create_pipeline as create_pipeline
