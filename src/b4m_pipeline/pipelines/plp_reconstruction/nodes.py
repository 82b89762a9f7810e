"""Nodes of the PLP reconstruction."""

from b4m_pipeline.common.config import FrameParams


def join_halves(content_adapter, style_adapter, frame: FrameParams):
    """Put two halves of one frame together; refuses halves of two frames."""
    from b4m_pipeline.training import stages

    return stages.join_halves(content_adapter, style_adapter, frame)
