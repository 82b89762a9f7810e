"""One picture that shows what a run was given: every square with its caption, a row or more for each concept."""

import textwrap

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from b4m_pipeline.common.sheets import in_cell

THUMB, GAP, COLUMNS = 112, 12, 8
LINE, LINES = 13, 3  # height of a caption's line in pixels, most lines of a caption
_INK, _PALE, _FRAME, _WARN = (30, 30, 30), (110, 110, 110), (220, 220, 220), (190, 60, 20)


def draw_sheet(manifest: pd.DataFrame, pictures: dict[str, Image.Image]) -> Image.Image:
    """The manifest's pictures by role and concept, in the manifest's order, with caption and its source. RGB."""
    title, small = ImageFont.load_default(15), ImageFont.load_default(11)
    groups = list(manifest.groupby(["role", "concept"], sort=False))
    cell = THUMB + LINE * (LINES + 1) + GAP
    heights = [30 + cell * -(-len(group) // COLUMNS) for _, group in groups]
    sheet = Image.new("RGB", (COLUMNS * (THUMB + GAP) + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for ((role, concept), group), height in zip(groups, heights, strict=True):
        heading = f"{role.replace('_', ' ')}: {concept} ({group.token.iloc[0]}), {len(group)} pictures"
        draw.text((GAP, top), heading, fill=_INK, font=title)
        for index, row in enumerate(group.itertuples()):
            x = GAP + index % COLUMNS * (THUMB + GAP)
            y = top + 24 + index // COLUMNS * cell
            sheet.paste(in_cell(pictures[row.picture], THUMB), (x, y))
            outline = _WARN if row.near_duplicate_of else _FRAME
            draw.rectangle((x, y, x + THUMB - 1, y + THUMB - 1), outline=outline)
            lines = textwrap.wrap(row.caption, 20, max_lines=LINES, placeholder=" ...")
            draw.multiline_text((x, y + THUMB + 2), "\n".join(lines), fill=_INK, font=small, spacing=1)
            note = row.caption_source.replace("_", " ") + (", near duplicate" if row.near_duplicate_of else "")
            draw.text((x, y + THUMB + 2 + LINE * LINES), note, fill=_PALE, font=small)
        top += height
    return sheet
