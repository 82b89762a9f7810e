"""The sheet of an evaluation: who is on it, in which order."""

import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.evaluation.contact_sheet import draw_contact_sheet
from b4m_pipeline.evaluation.samples import BASE, KNOWN, MADE

COLOURS = {"content": (250, 0, 0), "style": (0, 250, 0), BASE: (0, 0, 250), MADE: (250, 0, 250), "truth": (0, 250, 250)}


MEASURES = ("kept", "content_kept", "style_kept", "content", "style", "content_clip", "style_clip")


def sheet(truths: int, figure: float = 0.5, note: str = "", known: int = 0) -> Image.Image:
    square = {name: Image.new("RGB", (30, 30), colour) for name, colour in COLOURS.items()}
    asked = [(MADE, "first"), (MADE, "second"), (BASE, "first")]  # not in the order of the sheet
    rows = [
        {"picture": f"{system}-{prompt}-{seed}", "system": system, "kind": prompt, "prompt": f"a toy, {prompt}"}
        for system, prompt in asked
        for seed in range(2)
    ]
    rows += [
        {"picture": f"known-{thing}-{seed}", "system": BASE, "kind": KNOWN, "prompt": f"a thing {thing}"}
        for thing in range(known)
        for seed in range(2)
    ]
    summary = [
        {"system": system, "kind": prompt, "measure": measure, "mean": figure}
        for system, prompt in asked
        for measure in MEASURES[3 * (system == BASE) :]
    ]
    references = {"content": [square["content"]] * 3, "style": [square["style"]], "truth": [square["truth"]] * truths}
    pictures = {row["picture"]: square[row["system"]] for row in rows}
    return draw_contact_sheet("cup in ink", references, pd.DataFrame(rows), pictures, pd.DataFrame(summary), note)


def test_references_come_first_and_the_truth_last() -> None:
    pixels = np.asarray(sheet(1))
    tops = [np.flatnonzero((pixels == colour).all(-1).any(1)) for colour in COLOURS.values()]
    assert all(above.max() < below.min() for above, below in zip(tops, tops[1:], strict=False))
    shown = {name: (pixels == colour).all(-1).sum() / 112**2 for name, colour in COLOURS.items()}
    assert shown == {"content": 3, "style": 1, BASE: 2, MADE: 4, "truth": 1}


def test_without_a_truth_there_is_no_row_for_it() -> None:
    assert sheet(0).height == sheet(1).height - 120 and sheet(0).width == sheet(1).width


def test_figures_are_beside_the_rows() -> None:
    changed = (np.asarray(sheet(1, 0.5)) != np.asarray(sheet(1, 0.6))).any(-1)
    assert changed.any() and not changed[:, 232:].any()


def test_a_note_is_beside_the_made_adapter_alone() -> None:
    plain, noted = (np.asarray(sheet(1, note=note)) for note in ("", "the halves as joined"))
    rows = np.flatnonzero((plain != noted).any((1, 2)))
    made = np.flatnonzero((plain == COLOURS[MADE]).all(-1).any(1))
    assert len(rows) and made.min() <= rows.min() and rows.max() <= made.max()


def test_what_the_styles_pictures_show_is_drawn_once_each() -> None:
    shown = (np.asarray(sheet(1, known=2)) == COLOURS[BASE]).all(-1).sum() / 112**2
    assert shown == 2 + 2 and sheet(1, known=2).height == sheet(1).height + 120
