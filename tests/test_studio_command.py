"""`kedro studio`, as a user calls it, and what its page in the docs says of it."""

import re
import socket
import sys

import click
import pytest
from click.testing import CliRunner

from b4m_pipeline.cli import cli
from b4m_pipeline.one_line import explain
from tests import warm
from tests.test_readme import environment, project  # noqa: F401 (project is a fixture)
from tests.test_startup import ROOT

ANSWERS = """
import sys
from kedro.framework.cli import main
from starlette.testclient import TestClient
from b4m_pipeline.studio import app, serve

def answer(studio, listener, say, browser):
    with listener, TestClient(app.build(studio), base_url="http://127.0.0.1") as client:
        page, settings, cards = (client.get(path) for path in ("/", "/api/settings", "/api/cards"))
        say(f"asked {page.status_code} {settings.json()['base']} {cards.json()}")
        say(f"folders {[folder['path'] for folder in client.get('/api/folders').json()][-1]} {browser}")

serve.serve = answer
sys.argv = ["kedro", "studio", "--port=0", "--no-browser", "--allow", sys.argv[1]]
main()
"""


def test_it_serves_the_project(project, tmp_path) -> None:  # noqa: F811
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/cup.png").touch()
    done = warm.run(["python", "-c", ANSWERS, str(tmp_path / "pictures")], project, environment(project))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "asked 200 embedded_base@" in done.stdout and "{'cards': [], 'after': None}" in done.stdout
    assert f"folders {tmp_path / 'pictures'} False" in done.stdout


STUDIO = cli.commands["studio"].callback.__wrapped__  # without the project's context, which these do not reach


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"Port {port} of 127.0.0.1 cannot be had") as raised:
            STUDIO(None, port=port, allow=(), browser=False)
    assert explain(raised.value) == str(raised.value)  # one line


def test_a_missing_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(click.ClickException, match="kedro studio needs uvicorn, which is not installed: pip install"):
        STUDIO(None, port=0, allow=(), browser=False)


def test_the_docs_name_every_option_and_no_other() -> None:
    page = (ROOT / "docs/how-to/studio.md").read_text(encoding="utf-8")
    known = {name for option in cli.commands["studio"].params for name in (*option.opts, *option.secondary_opts)}
    named = set(re.findall(r"--[a-z][a-z-]*", page)) - {"--config", "--pipelines"}
    assert named == {name for name in known if name.startswith("--")} - {"--browser"}
    help_text = CliRunner().invoke(cli, ["studio", "--help"]).output
    assert all(name in help_text for name in named)


@pytest.mark.parametrize("name", ["library", "compose", "train", "sheets"])
def test_the_pictures_of_the_docs_are_small(name: str) -> None:
    assert (ROOT / f"docs/images/studio_{name}.png").stat().st_size < 200_000


def test_make_studio_installs_and_starts_it() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nstudio:")[1].split("\n\n")[0]
    assert '".[studio]"' in lines and lines.rstrip().endswith("kedro studio")
