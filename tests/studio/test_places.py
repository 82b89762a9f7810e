"""Which folders the page reaches, and which it does not."""

import pytest

from b4m_pipeline.studio.places import Places, PlacesError, is_picture, plain_file
from tests.library.helpers import folder


def test_folders_of_the_raw_data_and_those_that_were_named_at_start(places, project, tmp_path) -> None:
    assert places.folder("data/01_raw/own/cup") == (project / "data/01_raw/own/cup").resolve()
    outside = folder(tmp_path / "elsewhere/ink", (1, 2, 3))
    with pytest.raises(PlacesError, match="--allow"):
        places.folder(str(outside))
    allowed = Places(project, [tmp_path / "elsewhere"])
    assert allowed.folder(str(outside)) == outside.resolve()
    assert {each["path"] for each in allowed.folders()} == {"data/01_raw/own/cup", "data/01_raw/own/ink", outside.as_posix()}


@pytest.mark.parametrize("given", ["..", "data/01_raw/../../..", "/etc", "data/06_models", "~", "conf", "data/01_raw/own/link"])
def test_nothing_else_is_reached(places, project, given) -> None:
    (project / "data/01_raw/own/link").symlink_to("/etc")
    with pytest.raises(PlacesError):
        places.folder(given)


def test_the_true_drawings_are_not_offered(places, project) -> None:
    folder(project / "data/01_raw/truth/cup-ink", (1, 2, 3))
    folder(project / "data/01_raw/.hidden", (1, 2, 3))
    assert [each["path"] for each in places.folders()] == ["data/01_raw/own/cup", "data/01_raw/own/ink"]
    assert [each["pictures"] for each in places.folders()] == [2, 2]


@pytest.mark.parametrize(
    "name", ["../cup.png", "a/b.png", "a\\b.png", ".cup.png", "cup.exe", "cup", "a\nb.png", "x" * 130 + ".png"]
)
def test_only_plain_names_of_pictures_are_written(name) -> None:
    with pytest.raises(PlacesError):
        plain_file(name)


def test_names() -> None:
    assert plain_file("Tasse <b>.png") == "Tasse <b>.png"  # markup is shown as text
    assert is_picture("a.JPG") and not is_picture("a.mask.png") and not is_picture("a.txt")
