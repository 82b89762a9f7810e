"""The notebooks: valid, with outputs of the code above them, and (slow) run from top to bottom in a copy of the project."""

import ast
from pathlib import Path

import nbformat
import pytest

from tests.test_startup import ROOT
from tools import notebooks

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Those with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code(path: Path) -> list[str]:
    return [cell.source for cell in cells(read(path))]


def pictures(notebook: nbformat.NotebookNode) -> int:
    shown = [output.get("data", {}) for cell in cells(notebook) for output in cell.outputs]
    return sum(any(kind.startswith("image/") for kind in data) for data in shown)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(notebooks.ORDER) == ["composing", "method", "quickstart"]


@each_notebook
def test_valid_and_explained(path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and kinds.count("markdown") >= kinds.count("code") / 2


@each_notebook
def test_outputs_are_there_and_of_this_code(path) -> None:
    """If this fails, run `python -m tools.notebooks`, with the extra `notebooks` installed."""
    notebook = read(path)
    assert notebook.metadata.get(notebooks.DIGEST) == notebooks.code_digest(notebook)
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert [output for cell in cells(notebook) for output in cell.outputs if output.output_type in ("error", "stream")] == []
    assert pictures(notebook) >= 2 and path.stat().st_size <= notebooks.MOST_BYTES + 1


def test_a_changed_cell_is_noticed() -> None:
    notebook = read(NOTEBOOKS[0])
    before = notebooks.code_digest(notebook)
    notebook.cells[0].source += "More."
    assert notebooks.code_digest(notebook) == before  # words, not code
    cells(notebook)[-1].source += "\n"
    assert notebooks.code_digest(notebook) != before


@each_notebook
def test_code_compiles_and_names_no_machine(path) -> None:
    for source in code(path):
        ast.parse(source)
    whole = path.read_text(encoding="utf-8")
    machine = ("/home/", "/root/", "/tmp/", "/Users/", "C:\\\\", "site-packages", "\\u001b")  # the last: terminal colours
    assert [place for place in machine if place in whole] == []


@each_notebook
def test_parameters_are_those_of_the_project(path) -> None:
    """A renamed pipeline or a moved folder does not leave a notebook behind."""
    from b4m_pipeline.pipeline_registry import register_pipelines

    calls = [
        node
        for source in code(path)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "kedro_run"
    ]
    named = {argument.value for call in calls for argument in call.args}
    assert named and named <= set(register_pipelines())
    texts = {node.value for source in code(path) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    raw = [text for text in texts if isinstance(text, str) and text.startswith("data/01_raw/")]
    own = "data/01_raw/own"  # which a notebook makes
    assert [text for text in raw if not text.startswith(own) and not (ROOT / text).is_dir()] == []


def test_a_copy_of_the_project_has_nothing_of_earlier_runs(tmp_path) -> None:
    copied = notebooks.copy_project(tmp_path / "copy")
    assert (copied / "conf/base/parameters.yml").is_file() and (copied / "data/01_raw/contents/rocket").is_dir()
    assert list((copied / "conf/local").iterdir()) == [] and not (copied / "data/08_reporting").exists()


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch) -> None:
    pytest.importorskip("nbclient", reason='running notebooks needs pip install -e ".[notebooks]"')
    monkeypatch.setenv("KEDRO_ENV", "test")  # which the notebooks take for two steps
    notebook = notebooks.execute(read(path), notebooks.copy_project(tmp_path / "copy"))
    assert [output for cell in cells(notebook) for output in cell.outputs if output.output_type == "error"] == []
    assert pictures(notebook) == pictures(read(path)) and notebook.metadata == read(path).metadata
