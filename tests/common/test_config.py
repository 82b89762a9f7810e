"""What all parameter schemas share."""

from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from b4m_pipeline.common.config import Name, Strict, with_fields


class Example(Strict):
    """One parameter."""

    rate: float = 1.0


def test_a_typo_is_an_error_and_no_default():
    assert Example(rate=2).rate == 2
    with pytest.raises(ValidationError, match="rte"):
        Example(rte=2)


def test_parameters_stay_as_they_were_given():
    own = Example()
    with pytest.raises(ValidationError, match="frozen"):
        own.rate = 3.0
    assert own.model_copy(update={"rate": 3.0}).rate == 3 and own.rate == 1


@pytest.mark.parametrize("name", ["cup", "baby-bottle", "w_2", "Ärmel", "7"])
def test_plain_names_are_taken(name):
    assert TypeAdapter(Name).validate_python(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "a.b", "w@z", "a\n"])
def test_names_that_no_file_or_model_can_have_are_refused(name):
    with pytest.raises(ValidationError, match="must be letters, digits"):
        TypeAdapter(Name).validate_python(name)


class Worded(Strict):
    """A template and a list of them."""

    prompt: Annotated[str, with_fields("content", "article noun")] = "{content}"
    suffixes: list[Annotated[str, with_fields("", "style")]] = []


def test_a_templates_fields_are_checked_and_named():
    own = Worded(prompt="{article} {content}, {{no}}", suffixes=["plain", "in {style}"])
    assert own.prompt.format(article="a", content="cup") == "a cup, {no}"
    for prompt in ("a {noun}", "{content} {style}", "{content} {}"):
        with pytest.raises(ValidationError, match="prompt must hold {content} and may hold {article}, {noun}; got"):
            Worded(prompt=prompt)
    with pytest.raises(ValidationError, match="suffixes may hold {style}; got 'in {look}'"):
        Worded(suffixes=["{style}", "in {look}"])
    with pytest.raises(ValidationError, match="prompt"):
        Worded(prompt="{content")
