"""What all parameter schemas share."""

import pytest
from pydantic import TypeAdapter, ValidationError

from b4m_pipeline.common.config import Name, Strict, template_fields


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


def test_fields_of_a_template_are_its_names_in_braces():
    assert template_fields("{article} {content} and {content}, {{no}}") == {"article", "content"}
    assert template_fields("nothing") == set() and template_fields("{}") == {""}
