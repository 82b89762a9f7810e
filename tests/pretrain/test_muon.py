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
