"""Parameters of the stages: what is refused, and what no recipe needs to know."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.training.params import BreakParams, LoraParams, MakeParams, TrainParams, ValidationParams
from tests.conftest import PLAIN_TRAINING

LEAST = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3} | PLAIN_TRAINING


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learningrate": 1}, "Extra inputs"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"schedule": "linear"}, "schedule"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"mask_floor": 1.1}, "mask_floor"),
        ({"precision": "fp8"}, "precision"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"validation": {"keep": "best"}}, "need pictures to be held back"),
        ({"validation": {"patience": 2}}, "need pictures to be held back"),
        ({"samples": {"every": 0}}, "every"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(changes, message):
    TrainParams(**LEAST)
    with pytest.raises(ValidationError, match=message):
        TrainParams(**LEAST | changes)


def test_best_and_patience_are_taken_with_pictures():
    own = ValidationParams(pictures=1, keep="best", patience=2)
    assert (own.keep, own.patience) == ("best", 2)


def test_the_riemannian_step_is_makes_alone():
    assert MakeParams(**LEAST, keep="best").optimizer == "riemannian_adamw"
    with pytest.raises(ValidationError, match="optimizer"):
        BreakParams(**LEAST, counterpart_batch_size=1, counterpart_learning_rate=1e-3, optimizer="riemannian_adamw")


def test_a_plain_lora_needs_layers_and_a_break_its_counterparts():
    with pytest.raises(ValidationError, match="targets"):
        LoraParams(**LEAST, rank=1, alpha=1, targets=[])
    with pytest.raises(ValidationError, match="counterpart_batch_size"):
        BreakParams(**LEAST)
