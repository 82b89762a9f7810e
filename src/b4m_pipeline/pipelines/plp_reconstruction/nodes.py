"""Nodes of the PLP reconstruction."""

from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams


def join_halves(content_adapter: Adapter, style_adapter: Adapter, frame: FrameParams) -> Adapter:
    """Put two halves of one frame together; refuses halves of two frames."""
    from b4m_pipeline.method import combine

    return combine.join_halves(content_adapter, style_adapter, frame.content_side)
