"""Styles as functions of a drawing."""

import numpy as np
import pytest

from b4m_pipeline.inputs import filters as procedural


@pytest.mark.parametrize("name", procedural.STYLES)
def test_procedural_styles_give_pictures_of_their_own(name) -> None:
    rgba = np.zeros((128, 128, 4), np.float32)
    rgba[30:100, 30:100] = (0.9, 0.2, 0.1, 1)
    styled = procedural.STYLES[name](rgba, np.random.default_rng(0))
    assert styled.shape == rgba.shape and styled.dtype == np.float32
    assert np.isfinite(styled).all() and styled.min() >= -1e-6 and styled.max() <= 1 + 1e-6
    assert np.abs(styled - rgba).max() > 0.2
    assert np.array_equal(styled, procedural.STYLES[name](rgba, np.random.default_rng(0)))


@pytest.mark.parametrize("name", procedural.MANNERS[::4])
def test_styles_by_lot_look_alike_at_every_size(name) -> None:
    small = np.zeros((128, 128, 4), np.float32)
    small[32:96, 32:96] = (0.8, 0.3, 0.2, 1)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    drawn, finer = (procedural.STYLES[name](rgba, np.random.default_rng(0)) for rgba in (small, large))
    halved = finer.reshape(128, 2, 128, 2, 4).mean((1, 3))
    assert np.abs(halved - drawn).mean() < 0.03


def drawing() -> np.ndarray:
    """A red disc on nothing."""
    rgba = np.zeros((128, 128, 4), np.float32)
    y, x = np.mgrid[0:128, 0:128] - 63.5
    rgba[np.hypot(x, y) < 40] = (0.9, 0.2, 0.1, 1)
    return rgba


def test_no_two_styles_draw_alike() -> None:
    drawn = [style(drawing(), np.random.default_rng(0))[..., :3] for style in procedural.STYLES.values()]
    nearest = min(np.abs(a - b).mean() for index, a in enumerate(drawn) for b in drawn[:index])
    assert nearest > 0.003


@pytest.mark.parametrize("name", ["wood", "denim", "marble"])
def test_cut_out_materials_leave_the_ground_open(name) -> None:
    rgba = drawing()
    assert np.array_equal(procedural.STYLES[name](rgba, np.random.default_rng(0))[..., 3], rgba[..., 3])


@pytest.mark.parametrize("name", ["neon", "blueprint", "knit", "gold"])
def test_materials_that_are_a_whole_picture_fill_it(name) -> None:
    assert procedural.STYLES[name](drawing(), np.random.default_rng(0))[..., 3].min() == 1


def test_a_style_by_lot_follows_from_its_name_and_from_nothing_else() -> None:
    one, again, other = (
        procedural.manner(drawing(), np.random.default_rng(seed), name)
        for seed, name in ((0, "alba"), (9, "alba"), (0, "brio"))
    )
    assert np.array_equal(one, again) and np.abs(one - other).max() > 0.1


def test_a_texture_is_the_same_pattern_drawn_finer() -> None:
    kinds = 0
    for seed in range(6):
        coarse, fine = (procedural.random_texture(np.random.default_rng(seed), 64 * unit, unit) for unit in (1, 2))
        assert coarse.shape == (64, 64) and fine.shape == (128, 128)
        assert coarse.min() >= 0 and coarse.max() <= 1 and coarse.dtype == np.float32
        assert np.abs(fine[::2, ::2] - coarse).mean() < 0.08
        kinds += np.ptp(coarse) > 0.3
    assert kinds >= 5
