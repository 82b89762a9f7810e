"""Crafts: whole pictures, each with a look of its own, whatever their size."""

import numpy as np
import pytest
from tools.crafts import CRAFTS

from b4m_pipeline.inputs.filters import STYLES


def drawing(size: int = 128) -> np.ndarray:
    """A disc, half red and half blue, on nothing."""
    rgba = np.zeros((size, size, 4), np.float32)
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size - 0.5
    rgba[np.hypot(x, y) < 0.35] = (0.9, 0.2, 0.1, 1)
    rgba[(np.hypot(x, y) < 0.35) & (x > 0)] = (0.1, 0.3, 0.8, 1)
    return rgba


@pytest.mark.parametrize("name", CRAFTS)
def test_a_craft_is_a_whole_picture_of_its_own(name) -> None:
    made, again = (CRAFTS[name](drawing(), np.random.default_rng(0)) for _ in range(2))
    assert made.shape == (128, 128, 4) and made.dtype == np.float32 and (made[..., 3] == 1).all()
    assert np.isfinite(made).all() and made.min() >= 0 and made.max() <= 1 and np.array_equal(made, again)
    known = [style(drawing(), np.random.default_rng(0))[..., :3] for style in STYLES.values()]
    assert min(np.abs(made[..., :3] - other).mean() for other in known) > 0.05


@pytest.mark.parametrize("name", ["cut paper", "cross stitch", "engraving"])
def test_a_craft_looks_alike_at_every_size(name) -> None:
    small, large = (CRAFTS[name](drawing(size), np.random.default_rng(0)) for size in (128, 256))
    halved = large.reshape(128, 2, 128, 2, 4).mean((1, 3))
    assert np.abs(halved - small).mean() < 0.08


@pytest.mark.parametrize("name", ["cut paper", "tesserae", "cross stitch"])
def test_the_things_colours_stay(name) -> None:
    made = CRAFTS[name](drawing(), np.random.default_rng(0))
    left, right = made[56:72, 30:60, :3].mean((0, 1)), made[56:72, 68:98, :3].mean((0, 1))
    assert left[0] - left[2] > 0.1 and right[2] - right[0] > 0.05


def test_an_engraving_has_one_ink() -> None:
    made = CRAFTS["engraving"](drawing(), np.random.default_rng(0))
    assert (made[..., 0] >= made[..., 2]).all()


def test_crafts_are_no_looks() -> None:
    assert not CRAFTS.keys() & STYLES.keys()
