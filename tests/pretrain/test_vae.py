"""The autoencoder at toy size."""

import numpy as np
import pytest
import torch

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


def test_pictures_become_numbers_around_zero() -> None:
    rgb = np.zeros((1, 2, 3, 3), np.uint8)
    rgb[0, 0, 1] = (255, 0, 51)
    tensor = vae.to_tensor(rgb)
    assert tensor.shape == (1, 3, 2, 3) and tensor[0, :, 0, 1].tolist() == pytest.approx([1, -1, -0.6])


@pytest.mark.parametrize(("total", "wanted"), [(10, 3), (3, 10), (512, 512), (1000, 1)])
def test_a_sample_is_spread_over_all(total, wanted) -> None:
    chosen = np.flatnonzero(vae.slice_mask(total, wanted))
    assert chosen[0] == 0 and min(total, wanted) <= len(chosen) <= 2 * wanted
    assert len(set(np.diff(chosen))) <= 1


def test_a_reconstruction_is_judged_by_what_it_lost(monkeypatch) -> None:
    pictures = torch.zeros(2, 3, 8, 8)
    monkeypatch.setattr(vae, "round_trip", lambda model, images, batch: images + 0.2)  # a tenth of the range
    assert vae.psnr(None, pictures) == pytest.approx(20, abs=1e-3)


def test_parts_of_a_batch_are_encoded_as_the_whole() -> None:
    model = vae.make_vae(PARAMS.vae, 32).eval()
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(vae.encode_means(model, pictures, batch=2), vae.encode_means(model, pictures), atol=1e-5)
    round_trip = vae.round_trip(model, pictures, batch=2)
    assert round_trip.shape == pictures.shape and round_trip.abs().max() <= 1
