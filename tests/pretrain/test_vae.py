"""The autoencoder at toy size."""

import numpy as np
import pytest

from b4m_pipeline.pretrain import vae
from tests.pretrain.helpers import PARAMS, equal, stopped


def test_vae_resumes_to_the_same_weights_and_normalises_its_latents(drawings, tmp_path, monkeypatch) -> None:
    def train(name):
        return vae.train_vae(drawings, 32, PARAMS.vae, tmp_path / name, 0, "cpu")

    stopped(lambda: train("a"), vae, monkeypatch, at=3)
    resumed, whole = train("a"), train("b")
    assert equal(resumed, whole)
    latents = vae.encode_means(whole, vae.to_tensor(drawings.on())) * whole.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.05)


def test_textures_cover_the_share_asked_for() -> None:
    white = np.full((40, 32, 32, 3), 255, np.uint8)
    covered = (vae.texture(white, np.random.default_rng(0), 0.5) != 255).any((1, 2, 3))
    assert 10 < covered.sum() < 30
    assert np.array_equal(vae.texture(white, np.random.default_rng(0), 0.0), white)
