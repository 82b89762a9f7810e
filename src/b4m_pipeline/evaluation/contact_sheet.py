"""One picture of an evaluation: references, every system's pictures seed by seed, and the truth."""

import pandas as pd
from PIL import Image

from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.evaluation.samples import BASE, CONTENT, JOINED, KNOWN, MADE, STYLE

_JUDGES = (("EffNet", "content", "style"), ("CLIP", "content_clip", "style_clip"))


def draw_contact_sheet(
    title: str,
    references: dict[str, list[Image.Image]],
    samples: pd.DataFrame,
    pictures: dict[str, Image.Image],
    summary: pd.DataFrame,
    note: str = "",
) -> Image.Image:
    """RGB sheet: a row of content references, of style references, one for each system and prompt, and the true drawing.

    references: images of content, style and truth; samples: table of the pictures (see `evaluation.evaluate`); summary: their
    figures, written beside the rows; note: said of the made adapter.
    """
    rows = [Row(kind, references[kind], "references") for kind in ("content", "style")]
    known = samples[samples["kind"] == KNOWN].drop_duplicates("prompt")
    if len(known):
        rows.append(Row(BASE, [pictures[key] for key in known["picture"]], "what the style's pictures show, without adapter"))
    for system in (BASE, CONTENT, STYLE, JOINED, MADE):
        own = samples[(samples["system"] == system) & (samples["kind"] != KNOWN)]
        for prompt, group in own.groupby("prompt", sort=False):
            figures = summary[(summary["system"] == system) & (summary["kind"] == group["kind"].iloc[0])]
            means = dict(zip(figures["measure"], figures["mean"], strict=True))
            images = [pictures[key] for key in group["picture"]]
            said = [note] * (system == MADE and bool(note)) + [*_told(means), prompt]
            rows.append(Row(system, images, "\n".join(said), strong=system == MADE))
    truth = [Row("truth", references["truth"], "never seen in training")] if references["truth"] else []
    return paint_grid(rows + truth, title=title)


def _told(means: dict[str, float]) -> list[str]:
    """Lines of figures: what is kept of what is possible, then both judges' likeness to content and style."""
    lines = []
    if "kept" in means:
        of = f"content {means['content_kept']:.2f}, style {means['style_kept']:.2f}"
        lines.append(f"kept {means['kept']:.2f}: {of}" + (f"; truth {means['truth']:.2f}" if "truth" in means else ""))
    judges = [f"{name} {means[c]:.2f} {means[s]:.2f}" for name, c, s in _JUDGES if c in means]
    return [*lines, ", ".join(judges)] if judges else lines
