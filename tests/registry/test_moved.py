"""A project's database follows its folder, and leaves everybody else's places alone."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from b4m_pipeline.registry.moved import follow
from b4m_pipeline.registry.store import artifacts_of, sqlite_uri


@pytest.fixture
def project(empty_store: Path, tmp_path: Path) -> Path:
    """Folder with a database, in which a run has logged a text and a version of a model was made of it, and with artifacts."""
    folder = tmp_path / "first project 100%"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    log(folder, "a")
    client = mlflow.MlflowClient(sqlite_uri(folder / "mlflow.db"))
    client.create_registered_model("x")
    (run,) = runs(folder)
    client.create_model_version("x", f"{run.info.artifact_uri}/model", run.info.run_id)
    return folder


def log(folder: Path, text: str) -> None:
    """As a run of a project there does it."""
    mlflow.set_tracking_uri(sqlite_uri(folder / "mlflow.db"))
    try:
        if mlflow.get_experiment_by_name("b4m") is None:
            mlflow.create_experiment("b4m", artifact_location=(folder / "mlartifacts").as_uri())
        mlflow.set_experiment("b4m")
        with mlflow.start_run():
            mlflow.log_text(text, "text.txt")
    finally:
        mlflow.set_tracking_uri(None)


def runs(folder: Path) -> list:
    client = mlflow.MlflowClient(sqlite_uri(folder / "mlflow.db"))
    return client.search_runs([client.get_experiment_by_name("b4m").experiment_id])


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def places(folder: Path) -> set[str]:
    """All that the database says of where artifacts are."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        script = "\n".join(connection.iterdump())
    return {part for part in ("first", "second") if f"/{part}%20project" in script}


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
def test_artifacts_are_found_where_the_project_is_now(project, moved) -> None:
    now = project.with_name("second project ü?")
    (shutil.move if moved else shutil.copytree)(project, now)
    before = {} if moved else files(project)
    assert follow(now / "mlflow.db", artifacts_of(now / "mlflow.db")) == 4
    assert places(now) == {"second"}
    (run,) = runs(now)
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/text.txt") == "a"
    log(now, "b")
    assert len(list((now / "mlartifacts").glob("*/artifacts/text.txt"))) == 2
    assert moved or files(project) == before  # a copy never writes into the original
    assert follow(now / "mlflow.db", artifacts_of(now / "mlflow.db")) == 0


def test_a_copy_without_artifacts_reads_the_originals_and_writes_its_own(project) -> None:
    now = project.with_name("second project")
    now.mkdir()
    shutil.copy(project / "mlflow.db", now)
    before, own = files(project), (now / "mlflow.db", artifacts_of(now / "mlflow.db"))
    (text,) = project.glob("mlartifacts/*/artifacts/text.txt")
    for rows in (3, 0):  # the experiment, and the version that never had an artifact; then nothing more
        assert follow(*own) == rows
        log(now, "b")
        assert {mlflow.artifacts.load_text(f"{run.info.artifact_uri}/text.txt") for run in runs(now)} == {"a", "b"}
    assert len(list((now / "mlartifacts").glob("*/artifacts/text.txt"))) == 2 and files(project) == before
    shutil.copytree(project / "mlartifacts", now / "mlartifacts", dirs_exist_ok=True)
    assert follow(*own) == 1 and places(now) == {"second"}
    text.unlink()
    assert {mlflow.artifacts.load_text(f"{run.info.artifact_uri}/text.txt") for run in runs(now)} == {"a", "b"}


def test_a_project_that_stayed_is_left_as_it_is(project, tmp_path) -> None:
    before = files(project)
    assert follow(project / "mlflow.db", artifacts_of(project / "mlflow.db")) == 0
    os.symlink(project, tmp_path / "link")
    assert follow(tmp_path / "link/mlflow.db", tmp_path / "link/mlartifacts") == 0
    assert files(project) == before


@pytest.mark.parametrize(
    "place", ["s3://bucket/mlartifacts", "mlflow-artifacts:/mlartifacts", "file:///elsewhere/mlruns/1", "mlartifacts"]
)
def test_places_that_were_never_the_projects_are_left_alone(project, place) -> None:
    client = mlflow.MlflowClient(sqlite_uri(project / "mlflow.db"))
    number = client.create_experiment("other", artifact_location="file:///elsewhere/mlruns/1")
    with closing(sqlite3.connect(project / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (place, number))
    assert follow(project / "mlflow.db", artifacts_of(project / "mlflow.db")) == 0
