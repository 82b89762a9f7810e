"""`make` in folders whose names a shell, or make itself, takes apart."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_startup import ROOT

SAYS = '#!/bin/sh\necho "$0" "$@" >> "$SAID"\n'

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def environment_in(folder: Path) -> None:
    """A virtual environment whose commands say that they were called."""
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "kedro", "pytest"):
        (folder / "bin" / name).write_text(SAYS)
        (folder / "bin" / name).chmod(0o755)


def make(project: Path, target: str, **variables: str) -> list[str]:
    """The commands that were called."""
    said = project / "said"
    said.unlink(missing_ok=True)
    own = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"} | {"SAID": str(said)} | variables
    done = subprocess.run(["make", target], cwd=project, env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return said.read_text().splitlines()


@pytest.mark.parametrize("name", ["two blanks  here", "a'quote", "käfer", "a(b)", "a&b", "semi;colon", "per%cent"])
@pytest.mark.parametrize("named", [False, True], ids=[".venv", "VIRTUAL_ENV"])
def test_it_keeps_to_the_projects_folder(tmp_path, name, named) -> None:
    project = tmp_path / name
    project.mkdir()
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, project)
    place = project / "own env" if named else project / ".venv"
    environment_in(place)
    variables = {"VIRTUAL_ENV": str(place)} if named else {}
    called = make(project, "run", **variables)
    assert ["pip install" in call for call in called] == [True, False] and called[1].endswith(
        "kedro run --pipelines=break_make"
    )
    assert len(make(project, "run", **variables)) == 1  # it is installed now
    os.utime(project / "pyproject.toml", (2e9, 2e9))
    assert len(make(project, "run", **variables)) == 2
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert {each.name for each in project.iterdir()} == {"Makefile", "pyproject.toml", "constraints.txt", "said", place.name}
