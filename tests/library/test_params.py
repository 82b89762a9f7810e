"""Parameters of the library and of compose."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.library.params import ComposeParams, LibraryParams, RayParams

LEAST = {"table": "library.csv", "folder": "adapters", "pairs": "all"}


def test_pairs_are_all_none_or_a_list():
    assert LibraryParams(**LEAST).ray is None
    (pair,) = LibraryParams(**LEAST | {"pairs": [{"content": "cup", "style": "ink"}]}).pairs
    assert (pair.content, pair.style) == ("cup", "ink")


@pytest.mark.parametrize(
    "changes",
    [{"table": ""}, {"folder": ""}, {"pairs": "some"}, {"pairs": [{"content": "a/b", "style": "c"}]}, {"ray": {"workers": 0}}],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        LibraryParams(**LEAST | changes)


@pytest.mark.parametrize("changes", [{"cpus": 0}, {"gpus": -1}, {"retries": -1}, {"port": 1}], ids=str)
def test_a_job_is_given_what_can_be_given(changes):
    assert RayParams(gpus=0.5).gpus == 0.5
    with pytest.raises(ValidationError, match=next(iter(changes))):
        RayParams(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"style": ""},
        {"methods": []},
        {"methods": "sum mean"},
        {"methods": ["sum", "sum"]},
        {"merge": {"density": 0}},
        {"prompts": []},
    ],
    ids=str,
)
def test_two_loras_and_ways_that_exist_are_named(changes):
    assert ComposeParams(content="x", style="y").methods == ["halves"]
    assert ComposeParams(content="x", style="y", methods="halves sum").methods == ["halves", "sum"]
    with pytest.raises(ValidationError, match=next(iter(changes))):
        ComposeParams(**{"content": "x", "style": "y"} | changes)
