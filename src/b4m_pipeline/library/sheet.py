"""A library in one picture."""

from PIL import Image

from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.library.table import Composed


def draw_grid(composed: list[Composed], references: dict[str, Image.Image]) -> Image.Image:
    """Contents down, styles across, one picture of each pair; at the borders one picture of each concept (by Entry.name)."""
    contents, styles = (list(dict.fromkeys(getattr(pair, kind) for pair in composed)) for kind in ("content", "style"))
    drawn = {(pair.content, pair.style): pair.pictures[0] for pair in composed if pair.pictures}
    rows = [Row("", [None, *(references.get(f"style {style}") for style in styles)])]
    for content in contents:
        images = [references.get(f"content {content}"), *(drawn.get((content, style)) for style in styles)]
        rows.append(Row(content, images))
    return paint_grid(rows, headings=["", *styles])
