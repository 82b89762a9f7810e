"""One picture of an evaluation: references, every system's pictures seed by seed, and the truth."""

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from b4m_pipeline.common.sheets import in_cell
from b4m_pipeline.evaluation.evaluate import BASE, CONTENT, JOINED, MADE, STYLE

CELL, GAP, LABEL, TITLE = 112, 8, 200, 40  # pixels
_INK, _PALE, _FRAME, _CHOSEN = (30, 30, 30), (110, 110, 110), (225, 225, 225), (30, 110, 60)
_SHOWN = {"content": "content", "style": "style", "s_harm": "S_harm", "truth": "truth"}


def draw_contact_sheet(
    title: str,
    content_references: list[Image.Image],
    style_references: list[Image.Image],
    truth: list[Image.Image],
    samples: pd.DataFrame,
    pictures: dict[str, Image.Image],
    summary: pd.DataFrame,
) -> Image.Image:
    """RGB sheet: a row of content references, of style references, one for each system and prompt, and the true drawing.

    samples: table of the pictures (see `evaluation.evaluate`); summary: their figures, written beside the rows.
    """
    rows: list[tuple[str, str, list[Image.Image]]] = [
        ("content", "references", content_references),
        ("style", "references", style_references),
    ]
    for system in (BASE, CONTENT, STYLE, JOINED, MADE):
        for prompt, group in samples[samples["system"] == system].groupby("prompt", sort=False):
            figures = summary[(summary["system"] == system) & (summary["kind"] == group["kind"].iloc[0])]
            means = dict(zip(figures["measure"], figures["mean"], strict=True))
            said = ", ".join(f"{word} {means[key]:.2f}" for key, word in _SHOWN.items() if key in means)
            rows.append((system, f"{prompt}\n{said}", [pictures[key] for key in group["picture"]]))
    if truth:
        rows.append(("truth", "never seen in training", truth))

    columns = max(len(images) for _, _, images in rows)
    size = (LABEL + columns * (CELL + GAP) + GAP, TITLE + len(rows) * (CELL + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(16), ImageFont.load_default(11)
    pen.text((GAP, 12), title, fill=_INK, font=large)
    for index, (name, note, images) in enumerate(rows):
        top = TITLE + index * (CELL + GAP)
        colour = _CHOSEN if name == MADE else _INK
        pen.text((GAP, top + 4), name, fill=colour, font=large)
        pen.multiline_text((GAP, top + 28), _wrap(note, LABEL - 2 * GAP, pen, small), fill=_PALE, font=small)
        for column, image in enumerate(images):
            left = LABEL + column * (CELL + GAP)
            sheet.paste(in_cell(image, CELL), (left, top))
            pen.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=colour if name == MADE else _FRAME)
    return sheet


def strip(images: list[Image.Image]) -> Image.Image:
    """Pictures beside each other, as large as they are."""
    sheet = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def labelled_rows(rows: dict[str, list[Image.Image]]) -> Image.Image:
    """A row of pictures for each text, which stands at its left."""
    columns = max(len(images) for images in rows.values())
    sheet = Image.new("RGB", (LABEL + columns * (CELL + GAP) + GAP, len(rows) * (CELL + GAP) + GAP), "white")
    pen, small = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (text, images) in enumerate(rows.items()):
        top = GAP + index * (CELL + GAP)
        pen.multiline_text((GAP, top + 4), _wrap(text, LABEL - 2 * GAP, pen, small), fill=_INK, font=small)
        for column, image in enumerate(images):
            sheet.paste(in_cell(image, CELL), (LABEL + column * (CELL + GAP), top))
    return sheet


def _wrap(text: str, width: int, pen: ImageDraw.ImageDraw, font) -> str:
    """Break lines between words so that none is wider than `width` pixels."""
    lines = []
    for line in text.split("\n"):
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if current and pen.textlength(longer, font=font) > width:
                lines.append(current)
                current = word
            else:
                current = longer
        lines.append(current)
    return "\n".join(lines)
