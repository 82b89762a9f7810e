"""CIELAB there and back, and the distance of palettes."""

import numpy as np
import pytest
from PIL import Image

from b4m_pipeline.common.colour import from_lab, sliced_distance, to_lab


def test_lab_is_cielab_and_comes_back():
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    picture.paste((200, 30, 60), (0, 0, 20, 15))
    lab = to_lab(picture)
    assert lab.shape == (30, 40, 3) and lab[0, 0] == pytest.approx([43, 65, 30], abs=4)
    assert to_lab(Image.new("RGB", (1, 1), "white"))[0, 0] == pytest.approx([100, 0, 0], abs=1)
    assert np.abs(np.asarray(from_lab(lab), int) - np.asarray(picture, int)).max() <= 6


def test_palettes_are_apart_by_their_colours_distance():
    grey, light = np.full((50, 3), [50.0, 0, 0]), np.full((70, 3), [80.0, 0, 0])
    assert sliced_distance(grey, grey) == 0
    assert sliced_distance(grey, light) == pytest.approx(30, rel=0.15)  # 32 directions
    half = np.concatenate([grey, np.full((50, 3), [80.0, 0, 0])])
    assert sliced_distance(grey, half) == pytest.approx(15, rel=0.15)
