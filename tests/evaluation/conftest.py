"""Adapters of the tiny random SDXL that are drawn with once for several tests."""

import pytest

from b4m_pipeline.evaluation.evaluate import evaluate
from b4m_pipeline.method.combine import join_halves
from tests.conftest import train_make
from tests.evaluation.helpers import PARAMS, THINGS
from tests.training.helpers import MAKE, frame, train_half


@pytest.fixture(scope="session")
def adapters(tiny_training_set, tiny_base):
    from b4m_pipeline.training.params import MakeParams

    content, style = (train_half(kind, tiny_training_set, tiny_base, learning_rate=0.1)[0] for kind in ("content", "style"))
    joined = join_halves(content, style, frame().content_side)
    made, _ = train_make(joined, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE), 0)
    return content, style, joined, made


@pytest.fixture(scope="session")
def evaluated(adapters, tiny_base):
    return evaluate(*adapters, tiny_base, PARAMS, THINGS, seed=5)
