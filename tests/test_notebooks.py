"""The notebooks: valid, stored without outputs, and (slow) run from top to bottom in a copy of the project."""

import ast
import shutil
from pathlib import Path

import nbformat
import pytest

from tests.test_readme import COPIED
from tests.test_startup import ROOT

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["method", "quickstart", "registry"]


@each_notebook
def test_valid_explained_and_without_outputs(path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and kinds.count("markdown") >= kinds.count("code") / 2
    assert [
        cell.outputs for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)
    ] == []


@each_notebook
def test_code_compiles_and_names_no_machine(path) -> None:
    for source in code(path):
        ast.parse(source)
    whole = path.read_text(encoding="utf-8")
    assert [place for place in ("/home/", "/root/", "/tmp/", "/Users/", "C:\\\\") if place in whole] == []


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
    assert [text for text in raw if not (ROOT / text).is_dir()] == []


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason='running notebooks needs pip install -e ".[notebooks]"')
    for name in COPIED:
        unwanted = shutil.ignore_patterns("node_modules", "local", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unwanted)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "conf/local").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the project's own store
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"))
    monkeypatch.setenv("KEDRO_ENV", "test")  # which the notebooks take for two steps
    notebook = read(path)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in shown if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2
