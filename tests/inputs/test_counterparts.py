"""Counterparts that the base model draws: what is drawn, what it is called, and what is refused before that."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.diffusion.families import BaseModelError
from b4m_pipeline.inputs.counterparts import counterpart_folders
from b4m_pipeline.inputs.folders import PicturesError, list_folders
from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams
from b4m_pipeline.inputs.prepare import prepare
from tests.conftest import captioning_params, counterpart_params, drawn_counterparts, ingestion_params

CONTENT = ConceptParams(path="toy", token="snq", noun="toy")
STYLE = ConceptParams(path="ink", token="w@z", noun="picture")
CONTENTS = [{"word": "dog", "token": "ohwx"}, {"word": "apple pie", "token": "vtk"}]
STYLES = [{"word": "oil painting", "token": "qrv"}, {"word": "neon", "token": "xkl"}]


def params(folder, **changes) -> CounterpartParams:
    return drawn_counterparts(folder, **{"contents": CONTENTS, "styles": STYLES, "images": 3, "resolution": 40} | changes)


def test_each_word_becomes_a_folder_with_pictures_in_the_others_words(tiny_base, tmp_path):
    found = counterpart_folders(params(tmp_path), tiny_base, CONTENT, STYLE)
    concepts = [*found.contents, *found.styles]
    assert [(own.name, own.token, own.noun) for own in concepts] == [
        *(("drawn-dog", "ohwx", "dog"), ("drawn-apple-pie", "vtk", "apple pie")),
        *(("drawn-oil-painting", "qrv", "picture"), ("drawn-neon", "xkl", "picture")),
    ]
    folders = [folder for folder in list_folders(CONTENT, STYLE, found) if folder.role.startswith("counterpart")]
    prepared = prepare(folders, 32, ingestion_params(), captioning_params(), STYLE.token)
    table = prepared.manifest
    assert prepared.quarantine.empty and table["near_duplicate_of"].eq("").all() and len(table) == 12
    assert set(table["width"]) == {40} and {picture.size for picture in prepared.pictures.values()} == {(32, 32)}
    assert set(table["licence"]) == {"generated"}
    captions = table.groupby("token")["caption"].apply(list)
    assert captions["vtk"] == [f"a vtk apple pie in {style} style" for style in ("oil painting", "neon", "oil painting")]
    assert captions["qrv"] == [f"{thing} picture in qrv style" for thing in ("a dog", "an apple pie", "a dog")]


def test_they_are_drawn_once_and_another_word_alone_is_drawn_anew(tiny_base, tmp_path):
    first = counterpart_folders(params(tmp_path, images=1), tiny_base, CONTENT, STYLE)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    assert counterpart_folders(params(tmp_path, images=1), tiny_base, CONTENT, STYLE) == first
    more = [*CONTENTS, {"word": "cup", "token": "zqj"}]
    counterpart_folders(params(tmp_path, images=1, contents=more), tiny_base, CONTENT, STYLE)
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    assert len(before) == 4 and len(after) == 5 and before.items() < after.items()


def test_folders_are_left_as_they_are(tiny_base):
    given = counterpart_params(contents=[ConceptParams(path="dog", token="ohwx")])
    assert counterpart_folders(given, tiny_base, CONTENT, STYLE) == given


def test_a_token_of_the_runs_own_and_a_missing_base_model_are_said_before_anything_is_drawn(tiny_base, tmp_path):
    folder = tmp_path / "drawn"
    taken = params(folder, contents=[{"word": "dog", "token": "SNQ"}])
    with pytest.raises(PicturesError, match=r"'dog' has the token of the run's own content \(SNQ\)"):
        counterpart_folders(taken, tiny_base, CONTENT, STYLE)
    with pytest.raises(BaseModelError, match="base_model.path"):
        counterpart_folders(params(folder), tiny_base.model_copy(update={"path": str(tmp_path)}), CONTENT, STYLE)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contents": []}, "name words in drawn.contents and in drawn.styles"),
        ({"styles": []}, "name words in drawn.contents and in drawn.styles"),
        ({"styles": [{"word": "Dog", "token": "qrv"}]}, "the word 'dog' twice"),
        ({"styles": [{"word": "neon", "token": "vtk"}]}, "the token 'vtk' twice"),
        ({"styles": [{"word": " ", "token": "qrv"}]}, "must be a word"),
        ({"images": 0}, "greater than or equal to 1"),
        ({"template": "{content}"}, "must hold {content}, {style}"),
    ],
)
def test_wrong_words_are_refused(tmp_path, changes, said):
    with pytest.raises(ValidationError, match=said):
        params(tmp_path, **changes)


def test_folders_and_words_at_once_are_refused(tmp_path):
    given = params(tmp_path).model_dump() | {"styles": [{"path": "oil", "token": "jbn"}]}
    with pytest.raises(ValidationError, match="source is drawn, and contents or styles name folders"):
        CounterpartParams(**given)
