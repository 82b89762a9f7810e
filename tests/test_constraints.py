"""constraints.txt: a pin for every package that the project names, so that what is tested and audited is what is installed."""

import re
import tomllib

from tests.test_startup import ROOT


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_is_a_pin_and_every_dependency_has_one() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==[0-9][A-Za-z0-9.]*", line) for line in lines]
    assert [line for line, pin in zip(lines, pins, strict=True) if pin is None] == []
    pinned = [normal(pin[1]) for pin in pins]
    assert len(set(pinned)) == len(pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert {normal(re.match(r"[A-Za-z0-9._-]+", name)[0]) for name in named} <= set(pinned)
