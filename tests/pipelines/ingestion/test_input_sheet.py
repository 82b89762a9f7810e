import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.pipelines.ingestion.input_sheet import COLUMNS, draw_sheet


def sheet(count, caption="a snq toy"):
    rows = [
        {"picture": f"content/toy/{index}", "role": "content", "concept": "toy", "token": "snq", "caption": caption,
         "caption_source": "template", "near_duplicate_of": "content/toy/0" if index == 1 else ""}
        for index in range(count)
    ]  # fmt: skip
    return draw_sheet(pd.DataFrame(rows), {row["picture"]: Image.new("RGB", (20, 20), (0, 0, 250)) for row in rows})


def test_every_picture_is_on_it():
    one, full, more = (sheet(count) for count in (1, COLUMNS, COLUMNS + 1))
    assert one.size == full.size
    assert more.height > full.height
    blue = [(np.asarray(image) == (0, 0, 250)).all(-1).sum() for image in (one, full, more)]
    assert blue[1] == COLUMNS * blue[0]
    assert blue[2] == (COLUMNS + 1) * blue[0]


def test_long_and_foreign_captions_do_not_break_it():
    assert sheet(2, "雪 " * 400).size == sheet(2).size
    assert sheet(2, "x" * 4000).size == sheet(2).size


def test_near_duplicates_have_frames_of_another_colour():
    orange = [(np.asarray(sheet(count)) == (200, 70, 20)).all(-1).sum() for count in (1, 2, 3)]
    assert orange[0] == 0 and orange[1] == orange[2] == 2 * (116 + 112) * 2  # one picture of 112 pixels, a frame of 2
