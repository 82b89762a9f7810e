"""The sheet of strengths draws each pair of strengths with the adapter scaled so."""

import numpy as np
from PIL import Image

from b4m_pipeline.evaluation import strengths
from b4m_pipeline.method.combine import with_strengths
from tests.evaluation.helpers import PARAMS


def test_every_pair_of_strengths_is_drawn_once(tiny_joined, tiny_base, monkeypatch):
    asked, drawn = [], []

    def scaled(adapter, content, style):
        asked.append((style, content))
        return with_strengths(adapter, content, style)

    def paint(rows, headings):
        drawn.extend(image for row in rows for image in row.images)
        assert [row.title for row in rows] == ["style 0.6", "style 1.0", "style 1.4"]
        assert headings == ["content 0.6", "content 1.0", "content 1.4"]
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr(strengths, "with_strengths", scaled)
    monkeypatch.setattr(strengths, "paint_grid", paint)
    assert strengths.draw_strengths(tiny_joined, tiny_base, PARAMS, 3).size == (9, 9)
    values = (0.6, 1.0, 1.4)
    assert asked == [(style, content) for style in values for content in values] and len(drawn) == 9
    assert np.abs(np.asarray(drawn[0], int) - np.asarray(drawn[8], int)).max() > 0
