"""The judges on pictures whose likeness is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from b4m_pipeline.evaluation.judges import EfficientNetJudge
from b4m_pipeline.evaluation.measures import perceptual_distance, similarity


@pytest.fixture(scope="module")
def judge():
    return EfficientNetJudge()


def pattern(kind: str, shape: str, seed: int) -> Image.Image:
    """A square or a disc in one of two textures."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:64, 0:64]
    left, top = rng.integers(10, 18, 2)
    inside = (abs(x - left - 16) < 16) & (abs(y - top - 16) < 16)
    if shape == "disc":
        inside = (x - left - 16) ** 2 + (y - top - 16) ** 2 < 256
    stripes = (x // 2 % 2 if kind == "stripes" else (x + y) // 8 % 2)[..., None] * np.array([200, 60, 20])
    return Image.fromarray(np.where(inside[..., None], stripes, 255).astype(np.uint8))


def test_style_is_told_from_content(judge):
    stripes = judge.look([pattern("stripes", "square", s) for s in range(3)])
    checks = judge.look([pattern("checks", "square", s) for s in range(3)])
    probe = judge.look([pattern("stripes", "disc", 9)])  # the other shape, the first texture
    assert similarity(probe.style, stripes.style) > similarity(probe.style, checks.style) + 0.02


def test_features_are_unit_vectors_and_equal_pictures_have_no_distance(judge):
    pictures = [pattern("stripes", "square", 0), pattern("checks", "disc", 1)]
    seen = judge.look(pictures, maps=True)
    assert torch.allclose(seen.content.norm(dim=1), torch.ones(2)) and torch.allclose(seen.style.norm(dim=1), torch.ones(2))
    own = judge.look(pictures[:1], maps=True)
    distance = perceptual_distance(seen, own)
    assert distance[0] == pytest.approx(0, abs=1e-5) and distance[1] > 0.1
    assert perceptual_distance(seen, seen).max() == pytest.approx(0, abs=1e-5)  # the nearest of several truths


def test_distance_grows_with_damage(judge):
    clean = pattern("checks", "disc", 0)
    noisy = [Image.blend(clean, Image.effect_noise((64, 64), 120).convert("RGB"), share) for share in (0.1, 0.5)]
    small, large = perceptual_distance(judge.look(noisy, maps=True), judge.look([clean], maps=True))
    assert 0 < small < large
