"""Figures on features whose likeness is known."""

import pytest
import torch

from b4m_pipeline.evaluation.measures import (
    Judgement,
    Range,
    among,
    content_range,
    harmonic_mean,
    kernel_distance,
    perceptual_distance,
    similarity,
    style_range,
)


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


def test_shares_begin_at_the_floor_and_end_at_the_ceiling():
    whole = Range(0.2, 0.75)
    assert whole.share(torch.tensor([-0.5, 0.2, 0.75, 1.0])).tolist() == pytest.approx([0, 0.05 / 0.6, 1, 1])
    nothing_can_be_told = Range(0.3, 0.3)  # whatever is not below the floor has all there can be
    assert nothing_can_be_told.share(torch.tensor([0.3, 0.9, 0.25])).tolist() == pytest.approx([1, 1, 0], abs=1e-5)


def test_the_style_ends_where_its_pictures_are_to_each_other():
    alike = torch.tensor([[1.0, 0.6, 0.8], [0.6, 1.0, 0.7], [0.8, 0.7, 1.0]])
    assert among(alike) == pytest.approx(0.7) and among(torch.ones(1, 1)) == 1
    assert style_range(alike, torch.tensor([[0.1, 0.2, 0.3]])) == Range(pytest.approx(0.2), pytest.approx(0.7))


def unit(*numbers: float) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor([numbers], dtype=torch.float), dim=-1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_style_allows_the_content_what_it_leaves_of_known_things(share):
    """Two things, one along each of two axes: the style's pictures keep a share of each on its axis, the rest is the style."""
    things = [torch.cat([unit(1, 0, 0, 0)] * 2), torch.cat([unit(0, 1, 0, 0)] * 2)]
    rest = (1 - share**2) ** 0.5
    style = torch.cat([unit(share, 0, 0, rest), unit(0, share, 0, rest)])
    content = torch.cat([unit(0, 0, 1, 0)] * 2)
    whole = content_range(content, style, things)
    assert whole.floor == pytest.approx(0) and whole.ceiling == pytest.approx(share, abs=1e-6)
    assert content_range(content, style, [things[0], None]).ceiling == 1  # one thing alone tells nothing


def test_what_is_not_known_of_the_styles_things_counts_as_if_it_left_all():
    content, style = torch.cat([unit(1, 0, 0)] * 2), unit(0, 0, 1)
    assert content_range(content, style, []) == Range(0.0, 1.0)
