"""Adapters that are held together: pictures as if each were alone, and who is given up."""

import numpy as np
import pytest

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.sampling import ImageRequest, draw, put_on
from b4m_pipeline.diffusion.wardrobe import Wardrobe
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import FrameMismatchError, with_strengths
from tests.conftest import PIXELS, framed_lora_of


@pytest.fixture(scope="module")
def adapters(tiny_sdxl) -> list[Adapter]:
    """Three of one frame, and one with fewer layers."""
    first = framed_lora_of(tiny_sdxl)
    others = [Adapter({k: t * f for k, t in first.tensors.items()}, first.metadata, first.lora_config) for f in (0.5, 0.8)]
    kept = {key: tensor for key, tensor in first.tensors.items() if ".to_q." in key}
    few = Adapter(kept, first.metadata | {"kind": "merged"}, first.lora_config | {"target_modules": ["to_q"]})
    return [first, *others, few]


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    loaded = load_family(tiny_base).load_pipeline("cpu")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def bare(pipeline):
    yield pipeline
    pipeline.unload_lora_weights()


def picture(pipeline) -> np.ndarray:
    asked = [ImageRequest("a snq toy", 0)]
    ((_, image),) = draw(pipeline, asked, steps=1, guidance_scale=2.0, batch_size=1, size=(PIXELS, PIXELS))
    return np.asarray(image, int)


def alone(pipeline, adapter: Adapter) -> np.ndarray:
    put_on(pipeline, adapter)
    drawn = picture(pipeline)
    pipeline.unload_lora_weights()
    return drawn


def test_each_draws_as_if_it_were_alone_however_often_they_change(bare, adapters) -> None:
    strong = with_strengths(adapters[0], 2.0, 0.5)
    wanted = [alone(bare, adapter) for adapter in (*adapters, strong)]
    assert len({drawn.tobytes() for drawn in wanted}) == len(wanted)
    wardrobe = Wardrobe(bare)
    for number in (0, 1, 3, 0, 2, 4, 1, 0, 4, 3):
        scales = (2.0, 0.5) if number == 4 else (1.0, 1.0)
        wardrobe.wear(number % 4, lambda number=number: adapters[number % 4], *scales)
        assert np.array_equal(picture(bare), wanted[number]), number
    assert len(wardrobe) == 4


def test_who_was_not_used_for_longest_is_given_up_and_comes_back(bare, adapters, monkeypatch) -> None:
    loads = []
    monkeypatch.setattr("b4m_pipeline.diffusion.wardrobe.put_on", lambda *own: (loads.append(own[2]), put_on(*own)))
    wardrobe, wanted = Wardrobe(bare, most=2), {}
    for number in (0, 1, 0, 2, 0, 1):
        wardrobe.wear(number, lambda number=number: adapters[number])
        drawn = picture(bare)
        assert np.array_equal(wanted.setdefault(number, drawn), drawn)
    assert len(loads) == 4 and len(wardrobe) == 2 and 2 not in wardrobe
    assert set(bare.get_list_adapters()["unet"]) == {loads[0], loads[3]}


def test_memory_bounds_them_too_but_one_is_always_held(bare, adapters) -> None:
    size = sum(tensor.nbytes for tensor in adapters[0].tensors.values())
    wardrobe = Wardrobe(bare, most_bytes=2 * size)
    for number in (0, 1, 2):
        wardrobe.wear(number, lambda number=number: adapters[number])
    assert 0 not in wardrobe and len(wardrobe) == 2
    small = Wardrobe(bare, most_bytes=1)
    bare.unload_lora_weights()
    for number in (0, 1):
        small.wear(number, lambda number=number: adapters[number])
        assert len(small) == 1


def test_what_cannot_be_scaled_leaves_all_as_it_was(bare, adapters) -> None:
    wardrobe = Wardrobe(bare)
    assert wardrobe.wear(0, lambda: adapters[0]) is adapters[0]
    before = picture(bare)
    with pytest.raises(FrameMismatchError, match="is a merge"):
        wardrobe.wear(3, lambda: adapters[3], 2.0, 1.0)
    assert np.array_equal(picture(bare), before) and 3 not in wardrobe
