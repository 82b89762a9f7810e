"""The README's first picture, from the folders that a run leaves."""

import sys

import numpy as np
import pandas as pd
from PIL import Image

from tools import strips


def test_a_strip_shows_pictures_without_looks_and_the_first_prompts_images(tmp_path, monkeypatch) -> None:
    data = tmp_path / "run/data"
    colours = {"content/owl/0": 10, "content/owl/0+neon": 200, "style/pixel/cat": 60}
    colours |= {"made/both-0": 110, "made/red-0": 220}
    for name, grey in colours.items():
        root = data / ("07_model_output/samples" if name.startswith("made") else "03_primary/pictures")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (grey,) * 3).save(root / f"{name}.png")
    rows = [("base/x", "base", "a"), ("made/both-0", "made", "both"), ("made/red-0", "made", "both on red")]
    pd.DataFrame(rows, columns=["picture", "system", "prompt"]).to_csv(data / "07_model_output/samples.csv", index=False)
    row = strips.strip(data)
    assert row.title == "owl in pixel"
    assert [image and image.getpixel((0, 0))[0] for image in row.images] == [10, None, 60, None, 110]
    monkeypatch.setattr(sys, "argv", ["strips", str(tmp_path / "strips.png"), str(tmp_path / "run")])
    strips.main()
    assert {10, 60, 110} <= set(np.unique(np.asarray(Image.open(tmp_path / "strips.png"))))
