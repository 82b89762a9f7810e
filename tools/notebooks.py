"""Run the notebooks in a copy of the project, and keep their outputs.

    python -m tools.notebooks [NAME ...]

They share a project in which nothing has run before, so that the method's adapters need not be trained again for composing. The
digest of a notebook's code is kept with its outputs, so that tests can tell whether they are of the code above them.
"""

import argparse
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import NotebookNode

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
COPIED = ("src", "conf", "data/01_raw", "data/06_models/embedded_base", "data/06_models/embedded_clip")
FILES = ("pyproject.toml", ".telemetry")
ORDER = ("method", "composing", "quickstart")
"""Of the notebooks in one project."""
MOST_BYTES = 300_000
"""Of a notebook with its outputs: it is read on a page."""
DIGEST = "code_digest"
"""Metadata of a notebook with outputs: digest of the code that made them."""


def code_digest(notebook: NotebookNode) -> str:
    """Of all code cells, in order."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def copy_project(folder: Path) -> Path:
    """Put into `folder` what a run reads of the repository; returns it."""
    unwanted = shutil.ignore_patterns("node_modules", "local", "own", "__pycache__", "*.egg-info")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "conf/local").mkdir()
    (folder / "notebooks").mkdir()
    return folder


@contextmanager
def _environment(project: Path) -> Iterator[None]:
    """The kernel's: this copy's source, and its own store of runs and models."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(project / "src")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def execute(notebook: NotebookNode, project: Path) -> NotebookNode:
    """Run all cells in a copy of the project; returns the notebook with its outputs, but for what was logged. Raises
    nbclient's CellExecutionError if a cell fails."""
    from nbclient import NotebookClient

    with _environment(project):
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(project / "notebooks")}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    notebook.metadata[DIGEST] = code_digest(notebook)
    return notebook


def refresh(path: Path, project: Path) -> None:
    """Run one notebook and write it back with its outputs. Raises ValueError if it becomes too large for a page."""
    text = nbformat.writes(execute(nbformat.read(path, as_version=4), project)).replace(str(project), "PROJECT")
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"{path.name} has {len(text.encode())} bytes with its outputs, at most {MOST_BYTES}: show less")
    path.write_text(text + "\n", encoding="utf-8")
    logger.info("%s: %d bytes", path.name, len(text.encode()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of notebooks, without .ipynb; by default all")
    names = parser.parse_args().names or ORDER
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path(folder))
        for name in names:
            refresh(FOLDER / f"{name}.ipynb", project)


if __name__ == "__main__":
    main()
