"""What all sheets look like: places, text in its room, frames."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from b4m_pipeline.common.sheets import Row, paint_grid

BLUE, GREEN, ORANGE = (0, 0, 250), (30, 110, 60), (200, 70, 20)
CELL, GAP, LABEL = 40, 8, 216
LEFT = 2 * GAP + LABEL  # of the first image
LONG = ("many words " * 90, "x" * 2000, "雪だるまが立っている" * 90, "a\nb\n" * 90, "g\u0301\u0301\u0301\u0301\u0301 " * 90)


def square(colour=BLUE, size=(20, 20)) -> Image.Image:
    return Image.new("RGB", size, colour)


def shown(sheet: Image.Image, colour=BLUE) -> float:
    """How many cells a colour would fill."""
    return float((np.asarray(sheet) == colour).all(-1).sum() / CELL**2)


def ink(sheet: Image.Image) -> np.ndarray:
    """(H, W) bool: where the sheet is not white."""
    return (np.asarray(sheet) != 255).any(-1)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_each_image_is_on_the_sheet_as_often_as_it_is_given(count) -> None:
    rows = [Row("first", [square()] * count), Row("second", [square((250, 0, 0)), square()])]
    sheet = paint_grid(rows, columns=3, cell=CELL)
    assert sheet.mode == "RGB"
    assert shown(sheet) == count + 1 and shown(sheet, (250, 0, 0)) == 1


def test_rows_longer_than_the_columns_go_on_below() -> None:
    one, full, more = (paint_grid([Row("", [square()] * count)], columns=3, cell=CELL) for count in (1, 3, 4))
    assert one.size == full.size == (LEFT + 3 * (CELL + GAP), GAP + CELL + GAP)
    assert more.size == (full.width, full.height + CELL + GAP)
    assert (
        more.getpixel((LEFT, GAP + CELL + GAP)) == BLUE and more.getpixel((LEFT + CELL + GAP, GAP + CELL + GAP)) == (255,) * 3
    )
    assert paint_grid([Row("", [square()] * 4)], cell=CELL).size == (LEFT + 4 * (CELL + GAP), full.height)


def test_a_missing_image_leaves_its_place_empty() -> None:
    sheet = paint_grid([Row("", [None, square()]), Row("failed", [])], cell=CELL)
    assert shown(sheet) == 1 and sheet.getpixel((LEFT + CELL + GAP, GAP)) == BLUE
    assert not ink(sheet.crop((0, 0, LEFT + CELL, GAP + CELL))).any()
    assert not ink(sheet.crop((LEFT - GAP, GAP + CELL + GAP, *sheet.size))).any()
    assert ink(sheet.crop((0, GAP + CELL + GAP, LEFT - GAP, sheet.height))).any()
    assert paint_grid([]).width > 0


@pytest.mark.parametrize("text", LONG)
def test_text_stays_in_its_room(text) -> None:
    """Only there does a sheet with text differ from one without."""
    images, quiet = [square(), None], "a"

    def sheet(title=quiet, name=quiet, note=quiet, heading=quiet, caption=(quiet, quiet)):
        rows = [Row(name, images, note, [caption, (quiet, quiet)]), Row(quiet, images)]
        return paint_grid(rows, title=title, headings=[heading], cell=80)

    top = GAP + 25 + GAP + 30  # below title and headings
    rooms = {
        "title": (GAP, GAP, LEFT + 2 * (80 + GAP) - GAP, GAP + 25),
        "name": (GAP, top, GAP + LABEL, top + 80),
        "note": (GAP, top, GAP + LABEL, top + 80),
        "heading": (LEFT, GAP + 25 + GAP, LEFT + 80, top),
        "caption": (LEFT, top + 80, LEFT + 80, top + 80 + GAP + 60),
    }
    for what, (left, upper, right, lower) in rooms.items():
        for value in [(text, quiet), (quiet, text), (text, text)] if what == "caption" else [text]:
            changed = (np.asarray(sheet(**{what: value})) != np.asarray(sheet())).any(-1)
            assert changed[upper:lower, left:right].any()
            changed[upper:lower, left:right] = False
            assert not changed.any(), what


def test_a_long_caption_leaves_room_for_its_source() -> None:
    sheets = [paint_grid([Row("", [square()], captions=[("x" * 500, source)])], cell=CELL) for source in ("", "file")]
    assert (np.asarray(sheets[0]) != np.asarray(sheets[1])).any()


def test_long_text_is_broken_into_lines_and_says_that_it_goes_on() -> None:
    notes = [paint_grid([Row("", [square()], "x" * count)], cell=CELL) for count in (20, 50, 500, 600)]
    heights = [np.flatnonzero(ink(note.crop((0, 0, LEFT - GAP, note.height))).any(1)).max() for note in notes]
    assert heights[0] < heights[1] < GAP + CELL
    assert notes[2].tobytes() == notes[3].tobytes()


def test_strong_rows_and_marked_images_have_frames_of_their_own() -> None:
    images = [square()] * 3
    plain, strong, marked = (
        paint_grid([Row("name", images, **how)], cell=CELL) for how in ({}, {"strong": True}, {"marked": {1}})
    )
    assert shown(plain) == shown(strong) == shown(marked) == 3  # frames cover nothing
    assert not shown(plain, GREEN) and not shown(plain, ORANGE)
    assert strong.getpixel((LEFT - 1, GAP)) == strong.getpixel((LEFT + 2 * (CELL + GAP) - 1, GAP)) == GREEN
    assert shown(strong.crop((0, 0, LABEL, strong.height)), GREEN) > 0  # its name too
    places = [marked.getpixel((LEFT + index * (CELL + GAP) - 1, GAP + 5)) == ORANGE for index in range(3)]
    assert places == [False, True, False]
    wrapped = paint_grid([Row("", images, marked={2})], columns=2, cell=CELL)
    assert wrapped.getpixel((LEFT - 1, GAP + CELL + GAP)) == ORANGE


@pytest.mark.parametrize(("size", "filled", "empty"), [((40, 20), (2, 50), (50, 2)), ((20, 40), (50, 2), (2, 50))])
def test_an_image_keeps_its_shape(size, filled, empty) -> None:
    sheet = paint_grid([Row("", [square("red", size)])], cell=100, bare=True)
    assert sheet.size == (100, 100)
    assert sheet.getpixel(filled) == (255, 0, 0) and sheet.getpixel(empty) == (255, 255, 255)


def test_a_bare_sheet_is_the_images_and_nothing_else() -> None:
    noise = Image.effect_noise((CELL, CELL), 80)
    sheet = paint_grid([Row("", [noise, square()]), Row("", [noise.convert("RGBA")])], cell=CELL, bare=True)
    assert sheet.size == (2 * CELL, 2 * CELL) and shown(sheet) == 1
    for top in (0, CELL):
        assert sheet.crop((0, top, CELL, top + CELL)).tobytes() == noise.convert("RGB").tobytes()


def test_it_imports_nothing_heavy() -> None:
    """Ingestion draws a sheet where torch is not loaded."""
    code = (
        "import sys, b4m_pipeline.common.sheets as s; print({'torch', 'pandas', 'numpy', 'kedro', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
