"""A project that was moved or copied, with its store and its artifacts."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.adapters import fetch_adapter, register_adapter
from b4m_pipeline.registry.relocation import relocate
from b4m_pipeline.registry.store import follow_project, resolve_store

CONFIG = {"server": {"mlflow_tracking_uri": "sqlite:///mlflow.db"}, "tracking": {"experiment": {"name": "x"}}}


def use(project: Path) -> dict:
    """What the hook does."""
    config = resolve_store(CONFIG, project)
    follow_project(config)
    mlflow.set_tracking_uri(config["server"]["mlflow_tracking_uri"])
    if not MlflowClient().get_experiment_by_name("x"):
        MlflowClient().create_experiment("x", **config["tracking"]["experiment"]["create_experiment_kwargs"])
    mlflow.set_experiment("x")
    return config


@pytest.fixture
def project(tmp_path, empty_store, tiny_adapter, monkeypatch):
    """With a registered adapter; its path has what URIs write otherwise."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    root = tmp_path / "first ä"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    use(root)
    save_adapter(tiny_adapter, root / "made")
    register_adapter(root / "made")
    yield root
    mlflow.set_tracking_uri(None)


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_moved_project_has_its_adapters(project, tmp_path, caplog) -> None:
    moved = project.rename(tmp_path / "second")
    use(moved)
    assert fetch_adapter("models:/b4m-make-cup-ink@candidate").metadata["name"] == "cup-ink"
    assert "This project was in" in caplog.text
    caplog.clear()
    use(moved)
    assert not caplog.text


def test_a_copy_never_writes_into_the_original(project, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    before = files(project)
    use(copy)
    assert fetch_adapter("models:/b4m-make-cup-ink/1").metadata["name"] == "cup-ink"
    assert register_adapter(copy / "made")["version"] == "2"
    (run,) = MlflowClient().search_runs([mlflow.get_experiment_by_name("x").experiment_id], max_results=1)
    MlflowClient().log_text(run.info.run_id, "x", "note.txt")
    assert files(project) == before and len(files(copy / "mlartifacts")) > len(files(project / "mlartifacts"))
    use(project)
    assert fetch_adapter("models:/b4m-make-cup-ink/1").metadata["name"] == "cup-ink"


def test_artifacts_that_are_kept_elsewhere_stay_there(project, tmp_path) -> None:
    elsewhere = MlflowClient().create_experiment("elsewhere", artifact_location=str(tmp_path / "big disk"))
    moved = project.rename(tmp_path / "second")
    use(moved)
    assert MlflowClient().get_experiment(elsewhere).artifact_location.endswith("big disk")
    other = CONFIG | {"tracking": {"experiment": {"name": "x", "create_experiment_kwargs": {"artifact_location": "/other"}}}}
    third = moved.rename(tmp_path / "third")
    follow_project(resolve_store(other, third))
    mlflow.set_tracking_uri(f"sqlite:///{third}/mlflow.db")
    assert "second" in MlflowClient().get_experiment_by_name("x").artifact_location


def test_an_empty_file_is_left_alone(tmp_path) -> None:
    (tmp_path / "mlflow.db").touch()
    relocate(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == b""
