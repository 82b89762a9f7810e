"""Parameters of the base model and of drawing."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams


@pytest.mark.parametrize("resolution", [0, 4, 100])
def test_a_resolution_is_a_multiple_of_eight(resolution):
    assert BaseModelParams(path="x", resolution=1024).resolution == 1024
    with pytest.raises(ValidationError, match="resolution"):
        BaseModelParams(path="x", resolution=resolution)


def test_there_must_be_something_to_draw():
    with pytest.raises(ValidationError, match="prompts, or prompts_file"):
        GenerateParams(adapter=None, prompts=[])
    assert (
        GenerateParams(adapter=None, prompts=["a cat"]).prompts_file is None
        and GenerateParams(adapter=None, prompts=[], prompts_file="x.txt").prompts == []
        and GenerateParams(adapter="x", prompts=None).prompts is None
    )
    with pytest.raises(ValidationError, match="prompts, or prompts_file"):
        GenerateParams(adapter=None, prompts=None)


def test_halves_are_scaled_where_there_are_halves():
    assert GenerateParams(prompts=["a"], adapter="x", style_scale=0).style_scale == 0
    for side in ("content_scale", "style_scale"):
        with pytest.raises(ValidationError, match="need an adapter"):
            GenerateParams(adapter=None, prompts=["a"], **{side: 0.5})
        with pytest.raises(ValidationError, match=side):
            GenerateParams(prompts=["a"], adapter="x", **{side: 4.5})
