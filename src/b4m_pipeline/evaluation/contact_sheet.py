"""One picture of an evaluation: references, every system's pictures seed by seed, and the truth."""

import pandas as pd
from PIL import Image

from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.evaluation.samples import BASE, CONTENT, JOINED, MADE, STYLE

_SHOWN = {"content": "content", "style": "style", "s_harm": "S_harm", "truth": "truth"}


def draw_contact_sheet(
    title: str,
    references: dict[str, list[Image.Image]],
    samples: pd.DataFrame,
    pictures: dict[str, Image.Image],
    summary: pd.DataFrame,
) -> Image.Image:
    """RGB sheet: a row of content references, of style references, one for each system and prompt, and the true drawing.

    references: images of content, style and truth; samples: table of the pictures (see `evaluation.evaluate`); summary: their
    figures, written beside the rows.
    """
    rows = [Row(kind, references[kind], "references") for kind in ("content", "style")]
    for system in (BASE, CONTENT, STYLE, JOINED, MADE):
        for prompt, group in samples[samples["system"] == system].groupby("prompt", sort=False):
            figures = summary[(summary["system"] == system) & (summary["kind"] == group["kind"].iloc[0])]
            means = dict(zip(figures["measure"], figures["mean"], strict=True))
            said = ", ".join(f"{word} {means[key]:.2f}" for key, word in _SHOWN.items() if key in means)
            images = [pictures[key] for key in group["picture"]]
            rows.append(Row(system, images, f"{said}\n{prompt}", strong=system == MADE))
    truth = [Row("truth", references["truth"], "never seen in training")] if references["truth"] else []
    return paint_grid(rows + truth, title=title)
