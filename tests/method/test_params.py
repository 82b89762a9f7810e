"""Parameters of the frame."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.method.params import FrameParams
from tests.conftest import TINY_FRAME

LEAST = TINY_FRAME | {"targets": ["to_q"]}


def test_halves_that_never_meet_need_a_frame_that_allows_it():
    assert FrameParams(**LEAST | {"init": "paper", "halves": "free"}).init == "paper"
    with pytest.raises(ValidationError, match="halves: orthogonal needs init: exact"):
        FrameParams(**LEAST | {"init": "paper"})


def test_an_exact_frame_needs_an_even_rank():
    with pytest.raises(ValidationError, match="rank must be even for init: exact, got 5"):
        FrameParams(**LEAST | {"rank": 5})
    assert FrameParams(**LEAST | {"rank": 5, "init": "paper", "halves": "free"}).rank == 5


@pytest.mark.parametrize(
    "changes",
    [{"rank": 1}, {"alpha": 0}, {"split": 0}, {"split": 1}, {"scale": 0}, {"targets": []}, {"content_side": "A"}],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(ValidationError, match=name):
        FrameParams(**LEAST | changes)
