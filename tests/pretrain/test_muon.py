"""Muon's updates."""

import torch

from b4m_pipeline.pretrain.muon import Muon, orthogonalise


def test_muon_orthogonalises_and_scales_by_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 12, 30), (2, 30, 12)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)))
        assert values.min() > 0.5 and values.max() < 1.4
    weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))  # a convolution counts as (8, 36)
    weight.grad = torch.randn(weight.shape, generator=generator)
    Muon([weight], lr=0.1).step()
    update = torch.linalg.svdvals(weight.detach().flatten(1)) / 0.1
    assert update.min() > 0.5 and update.max() < 1.4


def test_weights_decay_and_what_has_no_gradient_stays() -> None:
    moved, still = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    moved.grad = torch.zeros(4, 4)
    Muon([moved, still], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(moved, torch.full((4, 4), 1 - 0.1 * 0.5)) and torch.equal(still, torch.ones(4, 4))


def test_parameters_of_one_shape_do_not_mix() -> None:
    """They go through the iteration together."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(6, 3, generator=generator) for _ in range(3)]

    def stepped(*chosen: int) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(torch.zeros(6, 3)) for _ in chosen]
        optimizer = Muon(weights, lr=0.1)
        for _ in range(2):
            for weight, index in zip(weights, chosen, strict=True):
                weight.grad = gradients[index].clone()
            optimizer.step()
        return [weight.detach() for weight in weights]

    together, alone = stepped(0, 1, 2), [stepped(index)[0] for index in range(3)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, alone, strict=True))
    assert not torch.allclose(together[0], together[1], atol=1e-2)
