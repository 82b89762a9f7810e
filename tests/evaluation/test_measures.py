"""Figures on features whose likeness is known."""

import pytest
import torch

from b4m_pipeline.evaluation.measures import Judgement, harmonic_mean, kernel_distance, perceptual_distance, similarity


def test_similarity_is_the_mean_cosine_to_all_references():
    references = torch.eye(3)
    images = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0]])
    assert similarity(images, references).tolist() == pytest.approx([1 / 3, 1.4 / 3])


def test_perceptual_distance_is_to_the_nearest_of_the_true_drawings():
    def seen(*values: float) -> Judgement:
        maps = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 2, 3, 3)
        return Judgement(torch.zeros(len(values), 1), torch.zeros(len(values), 1), (maps,))

    assert perceptual_distance(seen(0.0, 1.0), seen(0.0, 3.0)).tolist() == pytest.approx([0.0, 2.0])


def test_kernel_distance_tells_two_distributions_apart():
    generator = torch.Generator().manual_seed(0)
    one, same = torch.randn(2, 200, 8, generator=generator)
    assert abs(kernel_distance(one, same)) < 0.2 < kernel_distance(one, same + 1)


def test_harmonic_mean_wants_both():
    content, style = torch.tensor([0.8, 0.9, 0.5, -0.2]), torch.tensor([0.8, 0.1, 0.5, 0.9])
    assert torch.allclose(harmonic_mean(content, style), torch.tensor([0.8, 0.18, 0.5, 0.0]))
