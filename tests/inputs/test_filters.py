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
