"""Nodes of `compose`."""

from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams


def fetch_and_join(compose: ComposeParams, frame: FrameParams) -> Adapter:
    """Two halves that were trained at any time, put together; refuses halves of two frames, and swapped ones."""
    from b4m_pipeline.method.combine import join_halves
    from b4m_pipeline.registry.adapters import fetch_adapter

    content, style = fetch_adapter(compose.content), fetch_adapter(compose.style)
    return join_halves(content, style, content.metadata.get("half", frame.content_side))
