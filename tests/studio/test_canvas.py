"""Pictures as they are drawn: the same as the command line's."""

import time

import numpy as np
import pytest

from b4m_pipeline.diffusion.sampling import INFO_KEY, generate
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.registry.adapters import fetch_adapter
from b4m_pipeline.studio.canvas import CanvasError, cells
from tests.studio.conftest import CONTENT, MADE, STYLE, asked, drawn


def test_a_grid_is_drawn_row_by_row_and_ways_one_after_another() -> None:
    grid = cells(asked(grid=[0.5, 1.0], seed=3))
    assert [(cell.style, cell.content) for cell in grid] == [(0.5, 0.5), (0.5, 1.0), (1.0, 0.5), (1.0, 1.0)]
    assert {cell.seed for cell in grid} == {3}
    both = cells(asked(ways=["halves", "sum"], images=2, seed=3, style_strength=0.5))
    assert [(cell.way, cell.seed, cell.style) for cell in both] == [
        ("halves", 3, 0.5), ("halves", 4, 0.5), ("sum", 3, 0.5), ("sum", 4, 0.5)
    ]  # fmt: skip


def test_a_picture_is_what_generate_draws(canvas, tiny_base) -> None:
    request = {"content_strength": 0.5, "style_strength": 1.5, "seed": 7}
    drawing = drawn(canvas, **request)
    assert drawing.state == "done", drawing.message
    picture = drawing.pictures[0]
    adapter = join_halves(fetch_adapter(CONTENT), fetch_adapter(STYLE), "lora_A")
    (expected,) = generate(adapter, tiny_base, canvas.settings(asked(**request), picture.cell), 7).values()
    assert np.array_equal(np.asarray(picture.image), np.asarray(expected))
    assert picture.image.info[INFO_KEY] == expected.info[INFO_KEY]


def test_every_way_and_strength_counts(canvas) -> None:
    ways = ["halves", "make", "ties"]
    drawing = drawn(canvas, ways=ways, adapter=MADE, content_strength=2.0, style_strength=0.3)
    assert drawing.state == "done", drawing.message
    assert [picture.cell.way for picture in drawing.pictures] == ways and drawing.about()["total"] == 3
    images = {picture.cell.way: np.asarray(picture.image, int) for picture in drawing.pictures}
    weak = drawn(canvas, ways=["ties", "halves"], content_strength=0.1, style_strength=0.3)
    for picture in weak.pictures:
        assert np.abs(images[picture.cell.way] - np.asarray(picture.image, int)).max() > 0
    assert np.abs(images["halves"] - images["ties"]).max() > 0


def test_what_cannot_be_drawn_is_said_and_the_next_one_is_drawn(canvas) -> None:
    missing = drawn(canvas, content="models:/b4m-content-cup/9")
    assert missing.state == "failed" and "cannot be fetched" in missing.message
    swapped = drawn(canvas, content=STYLE, style=CONTENT)
    assert swapped.state == "failed" and "is a style adapter, no content half" in swapped.message
    assert drawn(canvas).state == "done"


def test_a_defect_is_logged_and_named(canvas, monkeypatch, caplog) -> None:
    def fail(*arguments, **keywords):
        raise KeyError("surprise")

    monkeypatch.setattr("b4m_pipeline.studio.canvas.draw", fail)
    drawing = drawn(canvas)
    assert drawing.state == "failed" and "KeyError" in drawing.message and "surprise" in caplog.text


def test_a_full_memory_is_said_and_given_back(canvas, monkeypatch) -> None:
    import torch

    def fail(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert drawn(canvas).state == "done" and canvas._wardrobe is not None
    monkeypatch.setattr("b4m_pipeline.studio.canvas.draw", fail)
    drawing = drawn(canvas)
    assert drawing.state == "failed" and "memory is full" in drawing.message and canvas._wardrobe is None


def test_a_drawing_can_be_stopped_and_waits_for_its_turn(canvas) -> None:
    with canvas._lock:
        waiting = [canvas.submit(asked(images=16)) for _ in range(8)]
        with pytest.raises(CanvasError, match="wait already"):
            canvas.submit(asked())
        for drawing in waiting:
            drawing.stop.set()
    for drawing in waiting:
        while not drawing.ended:
            time.sleep(0.01)
        assert drawing.state == "stopped" and not drawing.pictures
    with pytest.raises(CanvasError, match="not kept"):
        canvas.picture("nothing")
    with pytest.raises(CanvasError, match="not kept"):
        canvas.drawing("nothing")
