"""The look-up of adapters: what is found, in which order, and how often the store is asked for it."""

import mlflow
import pytest

from b4m_pipeline.registry import listing
from b4m_pipeline.registry.listing import find_adapters, models_of, page_of_adapters
from b4m_pipeline.registry.promotion import promote
from tests.registry.test_promotion import NAME, add

BASE = "tiny@123"


@pytest.fixture
def several(tracking):
    for _ in range(3):
        add(tracking)
    half = {"content_name": "", "style_name": ""}
    for kind, name in (("content", "cup"), ("style", "ink")):
        tracking.create_registered_model(f"b4m-{kind}-{name}")
        tags = {"kind": kind, "name": name, "frame": "0123" * 4, "base_model": "some/base"}
        tracking.create_model_version(f"b4m-{kind}-{name}", "file:///nowhere", tags=tags)
    tracking.create_registered_model("somebody-elses")
    tracking.create_model_version("somebody-elses", "file:///nowhere", tags=half)
    return tracking


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["b4m-content-cup 1", f"{NAME} 3", f"{NAME} 2", f"{NAME} 1", "b4m-style-ink 1"]),
        ({"kind": "make"}, [f"{NAME} 3", f"{NAME} 2", f"{NAME} 1"]),
        ({"kind": "style"}, ["b4m-style-ink 1"]),
        ({"concept": "ink", "frame": "0123"}, ["b4m-style-ink 1"]),
        ({"concept": "cup", "base": "tiny@"}, [f"{NAME} 3", f"{NAME} 2", f"{NAME} 1"]),
        ({"base": "some/base"}, ["b4m-content-cup 1", "b4m-style-ink 1"]),
        ({"frame": "ffff"}, []),
    ],
)
def test_adapters_are_found_by_what_they_are_of(several, wanted, found):
    assert [f"{entry.name} {entry.version}" for entry in find_adapters(**wanted)] == found


def test_aliases_stand_beside_their_versions(several):
    promote(NAME, "3")
    promote(NAME, "1", "old")
    by_version = {entry.version: entry for entry in find_adapters("make")}
    assert by_version["3"].aliases == ("candidate", "champion") and by_version["1"].aliases == ("old",)
    assert by_version["2"].aliases == () and by_version["2"].concept == "cup + ink"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Names of the requests to the registry, as they come."""
    names = []
    for name in ("search_model_versions", "search_registered_models", "get_registered_model", "get_model_version"):
        monkeypatch.setattr(mlflow.MlflowClient, name, _noted(name, getattr(mlflow.MlflowClient, name), names))
    return names


def _noted(name: str, original, names: list[str]):
    def noted(*args, **kwargs):
        names.append(name)
        return original(*args, **kwargs)

    return noted


def fill(client, names: int, versions: int = 1) -> None:
    for number in range(names):
        for _ in range(versions):
            add(client, f"b4m-make-c{number:02d}-ink", content_name=f"c{number:02d}")


@pytest.mark.parametrize("names", [1, 6])
def test_the_store_is_asked_as_often_for_many_names_as_for_few(tracking, asked, names) -> None:
    fill(tracking, names)
    asked.clear()
    assert len(find_adapters()) == names
    assert asked == ["search_model_versions", "search_registered_models"]
    asked.clear()
    assert len(page_of_adapters(limit=8).entries) == names
    assert asked == ["search_model_versions", "search_registered_models"]


def test_what_is_asked_for_bounds_what_the_store_gives(tracking, monkeypatch) -> None:
    fill(tracking, 9)
    original, given = mlflow.MlflowClient.search_model_versions, []

    def noted(self, *args, **kwargs):
        given.append(original(self, *args, **kwargs))
        return given[-1]

    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", noted)
    assert [entry.concept for entry in find_adapters(limit=3)] == ["c00 + ink", "c01 + ink", "c02 + ink"]
    assert [entry.concept for entry in find_adapters("make", "c06", "abcd", "tiny", limit=3)] == ["c06 + ink"]
    page = page_of_adapters(limit=3, words=["c0"], concepts={"style_name": "ink"}, base="moved/tiny@123")
    assert [entry.name[-7:] for entry in page.entries] == ["c08-ink", "c07-ink", "c06-ink"] and page.after
    assert sum(map(len, given)) == 3 + 1 + 3


def test_pages_hold_everything_once_newest_first(tracking) -> None:
    fill(tracking, 3, versions=3)
    tracking.set_registered_model_alias("b4m-make-c00-ink", "champion", "1")
    found, after = [], None
    while True:
        page = page_of_adapters(limit=2, after=after)
        found += [f"{entry.concept[:3]} {entry.version}" for entry in page.entries]
        if (after := page.after) is None:
            break
    assert found == [f"c0{number} {version}" for number in (2, 1, 0) for version in (3, 2, 1)]
    current = page_of_adapters(older=False, limit=50).entries
    assert [f"{entry.concept[:3]} {entry.version}" for entry in current] == ["c02 3", "c01 3", "c00 3", "c00 1"]
    assert len(page_of_adapters(older=False, limit=4).entries) == 4


@pytest.mark.parametrize("page", [2, 1000])
def test_more_than_a_page_of_versions_and_of_names_is_found(several, monkeypatch, page) -> None:
    monkeypatch.setattr(listing, "_PAGE", page)
    monkeypatch.setattr(listing, "_NAMES", page)
    assert len(find_adapters()) == 5 and len(find_adapters(limit=4)) == 4
    assert set(models_of(several, ["b4m-style-ink", NAME, "b4m-none"])) == {"b4m-style-ink", NAME}


@pytest.mark.parametrize("given", ["it's", 'say "cup"', "back\\slash", "100%", "c_p", "`"])
def test_what_the_stores_filters_cannot_say_is_no_error_and_finds_nothing_else(several, given) -> None:
    assert find_adapters(concept=given) == [] == find_adapters(base=given) == find_adapters(frame=given)
    assert page_of_adapters(words=[given], frame=given).entries == []
    assert page_of_adapters(base=given).entries == [] == page_of_adapters(concepts={"content_name": given}).entries


def test_somebody_elses_model_of_any_name_is_no_adapter(several) -> None:
    several.create_registered_model("o'clock")
    several.create_model_version("o'clock", "file:///nowhere", tags={"kind": "made", "frame": "x", "name": "y"})
    assert len(find_adapters()) == 5
