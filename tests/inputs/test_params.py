"""Parameters of folders, captions and preservation."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.inputs.params import BucketParams, ConceptParams
from tests.conftest import captioning_params, ingestion_params, preservation_params


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x/cup", "cup"),
        ("x/my cup (2)", "my-cup--2"),
        ("x/cup/", "cup"),
        ("x/v1.5", "v1-5"),
        ("/", "unnamed"),
        ("x/()", "unnamed"),
    ],
)
def test_a_concept_is_called_after_its_folder(path, name):
    assert ConceptParams(path=path, token="snq").name == name
    assert ConceptParams(path=path, token="snq", name="").name == name
    assert ConceptParams(path=path, token="snq", name="own").name == "own"


@pytest.mark.parametrize("changes", [{"path": ""}, {"token": ""}, {"name": "a/b"}, {"colour": "red"}], ids=str)
def test_a_concept_without_folder_token_or_plain_name_is_refused(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        ConceptParams(**{"path": "x/cup", "token": "snq"} | changes)


def test_a_look_has_a_place_in_its_template():
    assert ingestion_params(look_template="{content}, {look}").look_template == "{content}, {look}"
    for template in ("{content} {noun}", "{look}", "{content} {look} {style}"):
        with pytest.raises(ValidationError, match="look_template must hold"):
            ingestion_params(look_template=template)


@pytest.mark.parametrize("changes", [{"step": 4}, {"max_ratio": 1.0}], ids=str)
def test_buckets_are_of_a_size_and_shape(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        BucketParams(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"min_confidence": 1.5}, {"max_words": 3}, {"style_template": "{look}"}, {"style_suffix": " in {content}"}],
    ids=str,
)
def test_captions_that_cannot_be_are_refused(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        captioning_params(**changes)


def test_prompts_to_preserve_need_contents_and_styles():
    assert preservation_params(contents=["cat"], styles=["oil"]).number == 96
    for half in ({"contents": ["cat"]}, {"styles": ["oil"]}):
        with pytest.raises(ValidationError, match="both contents and styles, or neither"):
            preservation_params(**half)
