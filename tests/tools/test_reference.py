"""The page of parameters: it is what the tool writes, and holds all of them."""

import re

import pytest
from pydantic import BaseModel, Field

from tools import reference


def test_the_page_is_what_the_tool_writes() -> None:
    written = reference.PAGE.read_text(encoding="utf-8")
    assert written == reference.page(), "write it again: python -m tools.reference"


def test_every_parameter_of_conf_is_on_the_page() -> None:
    keys = set(re.findall(r"^\| `([^`]+)` \|", reference.PAGE.read_text(encoding="utf-8"), re.MULTILINE))

    def stated(values: dict, prefix: str) -> set[str]:
        own = {f"{prefix}{name}" for name in values}
        return own.union(*(stated(value, f"{prefix}{name}.") for name, value in values.items() if isinstance(value, dict)))

    mappings = ("ingestion.content_looks.", "pretrain.report.targets.")  # whose keys are the user's own
    for environment in reference.ENVIRONMENTS:
        values = reference.values_of(environment)
        assert {key.split(".")[0] for key in keys} == set(values)
        missing = stated(values, "") - keys - set(values)
        assert sorted(key for key in missing if not key.startswith(mappings)) == []


class Inner(BaseModel):
    """What a group is about."""

    share: float | None = Field(None, gt=0, le=1)
    """With {content} and `seed | 1`."""


class Outer(BaseModel):
    inner: Inner = Inner()
    entries: list[Inner] = Field([], min_length=1)
    """Some."""
    silent: int = 1


def test_rows_say_key_values_bounds_and_meaning() -> None:
    inner, share, entries, entry, silent = reference.parameters_of(Outer, "outer.")
    assert [each.key for each in (share, entry)] == ["outer.inner.share", "outer.entries[].share"]
    values = {"base": {"outer": {"inner": {"share": 0.5}}}, "sdxl": {"outer": {"inner": {"share": 1.0e-05}}}, "sd15": {}}
    rows = reference._table([inner, share, entries, entry], values).splitlines()[2:]
    assert rows == [
        "| `outer.inner` |  |  |  | group | What a group is about. |",
        r"| `outer.inner.share` | `0.5` | `1.0e-05` |  | number, > 0, ≤ 1, or `null` | With `{content}` and `seed \| 1`. |",
        "| `outer.entries` | `[]` |  |  | list of groups, not empty | Some. |",
        r"| `outer.entries[].share` | `null` |  |  | number, > 0, ≤ 1, or `null` | With `{content}` and `seed \| 1`. |",
    ]
    with pytest.raises(KeyError, match=r"Outer\.silent has no docstring"):
        reference.meaning(silent)
