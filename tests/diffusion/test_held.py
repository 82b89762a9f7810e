"""Layers that read the prompt alone are computed once a prompt, and give what they would give in each step."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from b4m_pipeline.benchmark.k_lora import KLora
from b4m_pipeline.diffusion import sampling
from b4m_pipeline.diffusion.families import denoiser_of, load_family
from b4m_pipeline.diffusion.held import held, skipping
from b4m_pipeline.diffusion.sampling import ImageRequest, draw, put_on
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams
from tests.conftest import PIXELS, TINY_FRAME, train_half
from tests.training.helpers import BREAK, CONTENT, STYLE

REQUESTS = [ImageRequest(f"a snq toy in {style} style", seed) for seed, style in enumerate(("w@z", "ink", "w@z"))]
SETTINGS = {"steps": 4, "guidance_scale": 3.0, "batch_size": 2, "size": (PIXELS, PIXELS)}


@pytest.fixture(scope="module")
def halves(tiny_training_set, tiny_base):
    own = BreakParams(**BREAK | {"learning_rate": 0.1})
    concepts = {"content": CONTENT, "style": STYLE}
    frame = FrameParams(**TINY_FRAME)
    return [train_half(kind, tiny_training_set, tiny_base, frame, concept, own, 0)[0] for kind, concept in concepts.items()]


def pixels(pipeline) -> np.ndarray:
    return np.stack([np.asarray(image) for _, image in draw(pipeline, REQUESTS, **SETTINGS)])


@pytest.mark.parametrize("way", ["none", "half", "chosen in each step"])
def test_images_are_the_same_to_the_bit_and_layers_read_each_prompt_once(tiny_base, halves, monkeypatch, way) -> None:
    pipeline = load_family(tiny_base).load_pipeline("cpu")
    content, style = halves
    if way == "half":
        put_on(pipeline, style)
    elif way != "none":
        put_on(pipeline, KLora(content, style, alpha=1.0, beta=0.5))
    calls = []
    layer = denoiser_of(pipeline).get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    read, own = torch.nn.Linear.forward, getattr(layer, "base_layer", layer)
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: (self is own and calls.append(1), read(self, x))[1])
    once = pixels(pipeline)
    assert len(calls) == 2 or (way == "chosen in each step" and 2 <= len(calls) <= 4)  # of two batches, four steps each
    assert "forward" not in vars(layer)
    monkeypatch.setattr(sampling, "held", lambda *_: nullcontext())
    calls.clear()
    assert np.array_equal(once, pixels(pipeline)) and len(calls) == 2 * 4


def test_another_input_is_computed_and_foreign_forwards_are_left_alone() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "moved": torch.nn.Linear(2, 2)})
    model["moved"].forward = moved = model["moved"].forward
    first, second = torch.ones(1, 2), torch.ones(1, 2)
    with torch.no_grad(), held(model, ["a", "moved"]):
        assert model["a"](first) is model["a"](first) is not model["a"](second)
        assert model["moved"].forward is moved
    assert "forward" not in vars(model["a"]) and model["moved"].forward is moved


def test_steps_that_a_picture_takes_the_place_of_are_not_computed(tiny_base, monkeypatch) -> None:
    family = load_family(tiny_base)
    pipeline = family.load_pipeline("cpu")
    unet, read = denoiser_of(pipeline), type(denoiser_of(pipeline)).forward
    (start, _), *_ = family.encode_pictures([Image.new("RGB", (PIXELS, PIXELS), "red")], "cpu")
    calls = []
    monkeypatch.setattr(type(unet), "forward", lambda self, *given, **named: (calls.append(1), read(self, *given, **named))[1])

    def drawn() -> np.ndarray:
        calls.clear()
        return np.asarray(next(draw(pipeline, REQUESTS[:1], **SETTINGS | {"steps": 8}, starts=[start], strength=0.5))[1])

    once = drawn()
    assert len(calls) == 1 + 4 and "forward" not in vars(unet)
    monkeypatch.setattr(sampling, "skipping", lambda *_: nullcontext())
    assert np.array_equal(once, drawn()) and len(calls) == 8
    unet.forward = moved = unet.forward
    with skipping(unet, lambda: True):
        assert unet.forward is moved
