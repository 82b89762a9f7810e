"""How all sheets look: rows of images, each with its name at the left. PIL alone: ingestion draws a sheet too."""

from bisect import bisect_right
from collections.abc import Sequence, Set
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

_TITLE, _NAME, _SMALL = 25, 20, 15  # heights of a line in pixels; the font has four fifths of it
_CAPTION = 4 * _SMALL  # room below an image: three lines, and one at least for the source
_INK, _PALE, _FRAME, _STRONG, _MARKED = (30, 30, 30), (100, 100, 100), (225, 225, 225), (30, 110, 60), (200, 70, 20)


@dataclass(frozen=True)
class Row:
    """One row of a sheet; None among its images leaves a place empty.

    captions: a text and its source for each image, or none; strong: what the sheet is about; marked: places of images to be
    looked at.
    """

    title: str
    images: Sequence[Image.Image | None]
    note: str = ""
    captions: Sequence[tuple[str, str]] = ()
    strong: bool = False
    marked: Set[int] = frozenset()


def paint_grid(
    rows: Sequence[Row], *, title: str = "", headings: Sequence[str] = (), columns: int = 0, cell: int = 112, bare: bool = False
) -> Image.Image:
    """RGB sheet of all rows, below a title and the columns' headings. Text without room ends in an ellipsis.

    columns: longer rows go on in a new line (0: none does); cell: pixels of an image's side; bare: images alone, side by side.
    """
    gap, label = (0, 0) if bare else (8, 216)
    columns = columns or max([1, *(len(row.images) for row in rows)])
    lines = [(row, start) for row in rows for start in range(0, len(row.images) or 1, columns)]
    heights = [cell + gap + (_CAPTION + gap) * bool(row.captions) for row, _ in lines]
    lefts = [2 * gap + label + column * (cell + gap) for column in range(columns)]
    top, above = gap + (_TITLE + gap) * bool(title), 2 * _SMALL * bool(headings)
    sheet = Image.new("RGB", (lefts[-1] + cell + gap, top + above + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    _write(sheet, (gap, gap, sheet.width - 2 * gap, top - gap), (title, _TITLE, _INK, 1))
    for left, heading in zip(lefts, headings, strict=False):
        _write(sheet, (left, top, cell, above), (heading, _SMALL, _INK, 2))
    top += above
    for (row, start), height in zip(lines, heights, strict=True):
        ink, frame = (_STRONG, _STRONG) if row.strong else (_INK, _FRAME)
        if not start:
            _write(sheet, (gap, top, label, cell), (row.title, _NAME, ink, 2), (row.note, _SMALL, _PALE, cell // _SMALL))
        for place, (left, image) in enumerate(zip(lefts, row.images[start:], strict=False), start):
            if image is not None:
                colour = _MARKED if place in row.marked else frame
                edge = min(gap, 1 if colour == _FRAME else 2)  # around the image, not on it
                pen.rectangle((left - edge, top - edge, left + cell + edge - 1, top + cell + edge - 1), fill=colour)
                shown = ImageOps.pad(image.convert("RGB"), (cell, cell), Image.Resampling.BICUBIC, color="white")
                sheet.paste(shown, (left, top))
            if row.captions:
                text, source = row.captions[place]
                _write(sheet, (left, top + cell + 3, cell, _CAPTION), (text, _SMALL, _INK, 3), (source, _SMALL, _PALE, 4))
        top += height
    return sheet


def _write(sheet: Image.Image, box: tuple[int, int, int, int], *parts: tuple[str, int, tuple[int, int, int], int]) -> None:
    """Write texts below each other into a box (left, top, width, height), each with a line's height, colour and most lines."""
    left, top, width, height = box
    paper, down = Image.new("RGB", (width, height), "white"), 0  # apart, so that no glyph, however tall, leaves the box
    pen = ImageDraw.Draw(paper)
    for text, step, colour, most in parts:
        font = ImageFont.load_default(step * 4 // 5)
        for line in _wrap(text, width, font, min(most, (height - down) // step)):
            pen.text((0, down), line, fill=colour, font=font)
            down += step
    sheet.paste(paper, (left, top))


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int) -> list[str]:
    """At most so many lines of `width` pixels, broken between words, or anywhere in what has no spaces."""
    lines: list[str] = []
    rest = [" ".join(line.split()) for line in text.strip().splitlines()]
    while rest and len(lines) < most:
        line = rest.pop(0)
        end = bisect_right(range(min(len(line), width) + 1), float(width), key=lambda count: font.getlength(line[:count])) - 1
        if end < len(line):
            end = max(line.rfind(" ", 0, end + 1), 0) or max(end, 1)
            rest.insert(0, line[end:].lstrip())
        lines.append(line[:end])
    if rest and lines:
        while lines[-1] and font.getlength(f"{lines[-1]} ...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += " ..."
    return lines
