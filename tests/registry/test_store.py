"""Which store a run uses, and the one quick error if it does not answer."""

import os
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from b4m_pipeline.registry import store as stores
from b4m_pipeline.registry.store import TrackingError, check_store, limit_patience, open_store, resolve_store, sqlite_uri
from tests import warm
from tests.test_startup import ROOT


def test_a_relative_sqlite_file_lies_in_the_project(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    config = {"server": {"mlflow_tracking_uri": "sqlite:///mlflow.db"}, "tracking": {"experiment": {"name": "x"}}}
    resolved = resolve_store(config, tmp_path)
    assert resolved["server"]["mlflow_tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    location = {"artifact_location": str(tmp_path / "mlartifacts")}
    assert resolved["tracking"]["experiment"] == {"name": "x", "create_experiment_kwargs": location}
    assert config["server"] == {"mlflow_tracking_uri": "sqlite:///mlflow.db"}


@pytest.mark.parametrize("uri", ["sqlite:///mine.db", "http://localhost:5000"])
def test_a_store_that_the_user_names_is_left_as_it_is(uri, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = {"server": {"mlflow_tracking_uri": uri}}
    assert resolve_store(config, Path("project")) == config


@pytest.mark.parametrize("named", ["", "  ", None])
def test_an_empty_variable_names_no_store(named, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named or "")
    config = {"server": {"mlflow_tracking_uri": named}}
    assert resolve_store(config, tmp_path)["server"]["mlflow_tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    "name", ["a%20b", "what?", "half#", "two blanks  here", "käfer 名", "100%", "a'b\"c", "semi;colon&x=y"]
)
def test_the_database_is_in_the_project_whatever_the_path(name, tmp_path, empty_store, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    project = tmp_path / name
    project.mkdir()
    shutil.copy(empty_store, project / "mlflow.db")
    resolved = open_store({"server": {"mlflow_tracking_uri": "sqlite:///mlflow.db"}}, project)
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient(resolved["server"]["mlflow_tracking_uri"])
    client.create_experiment("there", artifact_location=stores.artifacts_of(project / "mlflow.db").as_uri())
    assert [each.name for each in tmp_path.iterdir()] == [name]  # neither a database nor a folder beside it
    assert b"there" in (project / "mlflow.db").read_bytes()
    assert stores._file_of(sqlite_uri(project / "mlflow.db")) == project / "mlflow.db"


def test_who_comes_second_waits_and_makes_none(tmp_path, empty_store, monkeypatch) -> None:
    monkeypatch.setattr(stores, "_create", lambda file: pytest.fail("made twice"))
    file = tmp_path / "mlflow.db"
    with ThreadPoolExecutor(1) as pool, FileLock(tmp_path / "mlflow.db.lock"):
        second = pool.submit(stores._prepare, file)
        time.sleep(0.2)
        assert not second.done()
        shutil.copy(empty_store, tmp_path / "made")
        (tmp_path / "made").replace(file)
    second.result()
    file.unlink()
    monkeypatch.setattr(stores, "_PATIENT_SECONDS", 0.1)
    with FileLock(tmp_path / "mlflow.db.lock"), pytest.raises(TrackingError, match="another process has been making it"):
        stores._prepare(file)


@pytest.mark.slow
def test_four_processes_may_begin_at_once(tmp_path) -> None:
    """MLflow by itself: "duplicate column", or a table that is there already."""
    code = (
        "from pathlib import Path; from b4m_pipeline.registry.store import open_store\n"
        f"print(open_store({{'server': {{'mlflow_tracking_uri': 'sqlite:///mlflow.db'}}}}, Path({str(tmp_path)!r})))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: warm.run(["python", "-c", code], tmp_path, environment), range(4)))
    assert [each.returncode for each in done] == [0] * 4, done[-1].stderr[-2000:]
    assert not list(tmp_path.glob("*.partial"))
    client = mlflow.MlflowClient(sqlite_uri(tmp_path / "mlflow.db"))
    assert client.create_registered_model("x").name == "x"
    (default,) = client.search_experiments()
    assert default.artifact_location == f"{(tmp_path / 'mlartifacts').as_uri()}/0"


def test_a_half_made_database_is_made_anew(tmp_path, empty_store, monkeypatch) -> None:
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "mlflow.db.partial").write_bytes(b"half")

    class Store:
        def __init__(self, uri: str, artifacts: str):
            shutil.copy(empty_store, uri.removeprefix("sqlite:///"))
            self.engine = self

        def dispose(self) -> None: ...

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", Store)
    stores._prepare(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_bytes() == empty_store.read_bytes()


def test_a_store_that_answers_passes(store) -> None:
    check_store(store)


def test_a_server_that_is_not_there_is_one_quick_error_without_its_password() -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError, match="cannot be used") as error:
        check_store("http://me:secret@127.0.0.1:9")
    assert time.monotonic() - start < 15
    assert "MLFLOW_TRACKING_URI" in str(error.value)
    assert "secret" not in str(error.value)


def broken(file: Path) -> None:
    file.write_bytes(b"no database" * 100)


UNUSABLE = {"damaged": (broken, "put a copy of it back, or move it away"), "a folder": (Path.mkdir, "cannot be used")}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_database_that_cannot_be_used_is_one_error(name, tmp_path) -> None:
    spoil, said = UNUSABLE[name]
    spoil(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match=said) as error:
        check_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "\n" not in str(error.value) and "start its server" not in str(error.value) and "SELECT" not in str(error.value)


def test_a_database_that_may_not_be_written_to_is_one_error(store, tmp_path, monkeypatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda file, **given: connect(f"file:{file}?mode=ro", uri=True, **given))
    with pytest.raises(TrackingError, match="readonly database.*: give write permission to it and to its folder"):
        check_store(store)


def test_a_database_that_another_process_holds_is_one_error(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stores, "_PATIENT_SECONDS", 0.1)
    held = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    with pytest.raises(TrackingError, match="database is locked.*: another process is writing to it"):
        check_store(store)
    held.close()


def test_a_folder_that_cannot_be_made_is_one_error() -> None:
    with pytest.raises(TrackingError, match=r"/proc/b4m/mlflow\.db cannot be used"):
        check_store("sqlite:////proc/b4m/mlflow.db")


def test_the_users_own_patience_counts(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    limit_patience()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
