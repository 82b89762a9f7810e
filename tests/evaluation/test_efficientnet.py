"""EfficientNet-lite0 with the weights of its package."""

import torch
from PIL import Image

from b4m_pipeline.evaluation.judges import EfficientNetJudge


def test_efficientnet_knows_what_it_was_trained_on():
    """Real weights in the right places: a flat picture and noise are different things, the same twice is the same."""
    judge = EfficientNetJudge()
    flat, noise = Image.new("RGB", (64, 64), "white"), Image.effect_noise((64, 64), 100).convert("RGB")
    logits = judge.network(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 1000) and logits.std() > 0.5
    seen = judge.look([flat, noise, flat])
    assert torch.allclose(seen.content[0], seen.content[2], atol=1e-5)
    assert seen.content[0] @ seen.content[1] < 0.9
