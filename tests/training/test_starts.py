"""Breaks that go on from a half: what they start with, what their recipes know of it, and which halves are refused."""

import dataclasses
import json

import pytest
import torch

from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.method.layers import load_halves
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.setup import make_frame, set_up
from b4m_pipeline.training.stages import BreakStage
from b4m_pipeline.training.starts import StartError, check_start
from tests.training.helpers import BREAK, CONTENT, STYLE, frame, train_half

WORDS = {"template": "a {content} in {style} style", "contents": ["dog", "car", "cup"], "styles": ["oil", "pixel art"]}


def stage(kind, data, base, start, source="somewhere", frame_params=None, **changes) -> BreakStage:
    params = BreakParams(**BREAK | {"start_from": source, "learning_rate": 1e-9, "counterpart_learning_rate": 1e-9} | changes)
    concept = CONTENT if kind == "content" else STYLE
    return BreakStage(kind, data, base, frame_params or frame(), concept, params, 0, start)


@pytest.mark.parametrize(("kind", "init"), [("content", "exact"), ("style", "paper")])
def test_training_goes_on_from_the_halfs_weights(kind, init, tiny_training_set, tiny_base) -> None:
    halves = "orthogonal" if init == "exact" else "free"
    own = frame(init=init, halves=halves)
    first, _ = train_half(kind, tiny_training_set, tiny_base, own)
    same, _ = stage(kind, tiny_training_set, tiny_base, first, frame_params=own).train()
    assert same.tensors.keys() == first.tensors.keys()
    assert all(torch.allclose(same.tensors[key], tensor, atol=1e-5) for key, tensor in first.tensors.items())
    scratch, _ = train_half(kind, tiny_training_set, tiny_base, own, learning_rate=1e-9, counterpart_learning_rate=1e-9)
    assert max((scratch.tensors[key] - tensor).abs().max() for key, tensor in first.tensors.items()) > 1e-3


def test_the_recipe_knows_the_weights_and_not_their_name(tiny_halves, tiny_training_set, tiny_base) -> None:
    content, _ = tiny_halves
    one, two = (stage("content", tiny_training_set, tiny_base, content, source) for source in ("a/folder", "models:/x@y"))
    assert one.recipe.digest == two.recipe.digest
    other = dataclasses.replace(content, tensors={key: 2 * tensor for key, tensor in content.tensors.items()})
    assert stage("content", tiny_training_set, tiny_base, other).recipe.digest != one.recipe.digest
    params = BreakParams(**BREAK | {"learning_rate": 1e-9, "counterpart_learning_rate": 1e-9})
    alone = BreakStage("content", tiny_training_set, tiny_base, frame(), CONTENT, params, 0)
    assert alone.recipe.digest != one.recipe.digest
    assert one.recipe.differences(alone.recipe.metadata() | {"frame": alone.recipe.frame}) == []
    registered = dataclasses.replace(content, metadata=content.metadata | {"registry_uri": "models:/b4m-content-cup/3"})
    adapter, _ = stage("content", tiny_training_set, tiny_base, registered).train()
    assert json.loads(adapter.metadata["parents"]) == ["models:/b4m-content-cup/3"]
    with pytest.raises(ValueError, match=r"content_break\.start_from: here halves are trained from the beginning"):
        stage("content", tiny_training_set, tiny_base, None)


def test_halves_of_another_kind_frame_or_base_are_refused(tiny_halves, tiny_joined, tiny_training_set, tiny_base) -> None:
    content, style = tiny_halves
    here = make_frame(tiny_base, frame())
    check_start(content, "content", frame(), here)
    elsewhere = dict(content.metadata)
    elsewhere["frame_config"] = json.dumps(json.loads(elsewhere["frame_config"]) | {"base_model": "other@0123"})
    wrong = [
        (style, {}, "ink is a style adapter, and not a content half"),
        (tiny_joined, {}, "is a reconstructed adapter"),
        (content, {"seed": 1, "rank": 8}, r"is a half of another frame \(rank, seed\): set the parameters of `frame`"),
        (content, {"content_side": "lora_B"}, r"trained with another frame\.content_side \(lora_A instead of lora_B\)"),
        (content, {"halves": "free"}, r"trained with another frame\.halves \(orthogonal instead of free\)"),
        (
            dataclasses.replace(content, metadata=elsewhere),
            {},
            "is a half of the base model other@0123, and this run's is tiny_sdxl",
        ),
    ]
    for start, changes, message in wrong:
        own = frame(**changes)
        with pytest.raises(StartError, match=rf"^content_break\.start_from: .*{message}"):
            check_start(start, "content", own, make_frame(tiny_base, own))
        with pytest.raises(StartError, match=message):
            stage("content", tiny_training_set, tiny_base, start, frame_params=own).train()


def test_a_half_of_words_that_other_encoders_read_is_refused(tiny_training_set, tiny_base) -> None:
    own = frame(basis="words", words=WORDS, targets=["attn2.to_k", "attn2.to_v"])
    half, _ = train_half("content", tiny_training_set, tiny_base, own)
    setup = set_up(tiny_training_set, tiny_base, own, BreakParams(**BREAK), "orthogonal", 0)
    load_halves(setup.layers, half, setup.frame)
    turned = {
        layer: dataclasses.replace(each, frozen=each.learnt, learnt=each.frozen)
        for layer, each in setup.frame.directions.items()
    }
    with pytest.raises(FrameMismatchError, match="cup was trained with other text encoders"):
        load_halves(setup.layers, half, dataclasses.replace(setup.frame, directions=turned))
