"""Nodes of `compose`."""

from b4m_pipeline.common.config import ComposeParams, FrameParams


def fetch_and_join(compose: ComposeParams, frame: FrameParams):
    """Two halves that were trained at any time, put together; refuses halves of two frames, and swapped ones."""
    from b4m_pipeline.datasets.registry import fetch_adapter
    from b4m_pipeline.training import stages

    content, style = fetch_adapter(compose.content), fetch_adapter(compose.style)
    side = content.metadata.get("half", frame.content_side)
    return stages.join_halves(content, style, frame.model_copy(update={"content_side": side}))
