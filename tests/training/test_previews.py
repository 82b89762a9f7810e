"""Images drawn while a stage is trained."""

import numpy as np
import pytest
import torch

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.training.params import BreakParams, SampleParams
from b4m_pipeline.training.previews import Previews
from b4m_pipeline.training.setup import set_up
from tests.conftest import train_half as train_on
from tests.training.helpers import BREAK, CONTENT, frame


@pytest.mark.parametrize("family", ["tiny_sdxl", "tiny_sd"])
def test_pictures_are_shown_while_training_and_change_nothing(family, tiny_manifest, request):
    base = BaseModelParams(path=str(request.getfixturevalue(family)), resolution=32)
    data = encode_training_set(*tiny_manifest, base)
    shown = []
    targets = {"targets": ["to_q", "to_k", "to_v"]}
    options = {"samples": {"every": 2, "steps": 2}, "learning_rate": 0.3}
    drawn, _ = train_on(
        "content",
        data,
        base,
        frame(**targets),
        CONTENT,
        BreakParams(**(BREAK | options)),
        0,
        show=lambda picture, name: shown.append((name, picture)),
    )
    assert [name for name, _ in shown] == ["content_break/0-step-000002", "content_break/0-step-000004"]
    assert shown[0][1].size == (32, 32) and shown[0][1].tobytes() != shown[1][1].tobytes()
    plain = train_on("content", data, base, frame(**targets), CONTENT, BreakParams(**(BREAK | {"learning_rate": 0.3})), 0)[0]
    assert all(torch.equal(drawn.tensors[key], plain.tensors[key]) for key in plain.tensors)


def test_what_is_shown_is_what_the_stock_pipeline_draws(tiny_base, tiny_training_set):
    family = load_family(tiny_base)
    previews = Previews(family, ["a snq toy", "a hat"], SampleParams(every=1, steps=3, guidance_scale=3.0), 4, "cpu")
    drawn = previews.draw(family.load_denoiser())
    stock = family.load_pipeline()(
        ["a snq toy", "a hat"],
        num_inference_steps=3,
        guidance_scale=3.0,
        height=32,
        width=32,
        generator=[torch.Generator().manual_seed(4 + index) for index in range(2)],
    ).images
    for ours, theirs in zip(drawn, stock, strict=True):
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_the_same_noise_shows_what_training_changed_and_nothing_else(tiny_base):
    family = load_family(tiny_base)
    unet = family.load_denoiser()
    previews = Previews(family, ["a snq toy", "a hat"], SampleParams(every=1, steps=2), 4, "cpu")
    before, again = previews.draw(unet), previews.draw(unet)
    assert [image.tobytes() for image in before] == [image.tobytes() for image in again]
    assert [image.size for image in before] == [(32, 32)] * 2 and before[0].tobytes() != before[1].tobytes()
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    assert previews.draw(unet)[0].tobytes() != before[0].tobytes()
    other = Previews(family, ["a hat"], SampleParams(every=1, steps=2), 5, "cpu").draw(family.load_denoiser())
    assert other[0].tobytes() == before[1].tobytes()  # its seed is the first's and its place


def test_prompts_are_the_parameters_or_the_first_caption(tiny_training_set, tiny_base):
    for prompts, expected in (([], ["a snq toy"]), (["a hat", "a cat"], ["a hat", "a cat"])):
        params = BreakParams(**BREAK | {"samples": {"every": 2, "prompts": prompts}})
        setup = set_up(tiny_training_set, tiny_base, frame(), params, "free", 0, prompts=["a snq toy"])
        assert [request.prompt for request in setup.previews.requests] == expected
        names = []
        setup.previews.draw = lambda unet, expected=expected: [None for _ in expected]
        setup.drawing("make", lambda image, name, names=names: names.append(name))(7)
        assert names == [f"make/{index}-step-000007" for index in range(len(expected))]
        assert setup.drawing("make", None) is None  # nobody to show them to
