"""Which MLflow store a run uses, and whether it answers."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from b4m_pipeline.common.config import shown
from b4m_pipeline.registry.moved import follow

# MLflow's own defaults wait for minutes before they say that a server is away.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


_SQLITE = "sqlite:///"
OWN_STORE = f"{_SQLITE}mlflow.db"
"""A project's own, as conf/base/mlflow.yml has it."""
_PATIENT_SECONDS = 60


class TrackingError(ValueError):
    """MLflow's tracking store is not there or cannot be used."""


def limit_patience() -> None:
    """Set timeouts and retries of MLflow's requests where the user has not."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def resolve_store(config: dict[str, Any], project_path: Path) -> dict[str, Any]:
    """mlflow.yml with a sqlite file of its own made absolute, and its artifacts beside it: SQLAlchemy and MLflow would
    take both from the working directory. A store named by MLFLOW_TRACKING_URI is left as it is; if that is empty, it names
    none. Raises TrackingError for what is no mlflow.yml."""
    server, tracking = _group(config, "server"), _group(config, "tracking")
    named = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    # Without any, MLflow would make a database in the working directory.
    uri = str(server.get("mlflow_tracking_uri") or "").strip() or named or OWN_STORE
    if not uri.startswith(_SQLITE) or uri == named:
        return config
    file = project_path / uri.removeprefix(_SQLITE)
    server["mlflow_tracking_uri"] = sqlite_uri(file)
    experiment = _group(tracking, "experiment")
    create = _group(experiment, "create_experiment_kwargs")
    create.setdefault("artifact_location", str(artifacts_of(file)))
    return config | {"server": server, "tracking": tracking | {"experiment": experiment | {"create_experiment_kwargs": create}}}


def _group(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise TrackingError(f"mlflow.yml: {name} must be a group of settings, got {shown(found)}")
    return dict(found)


def sqlite_uri(file: Path) -> str:
    """The URI of an absolute path. SQLAlchemy ends a path at ? and reads % as an escape; MLflow, which makes a file's folder,
    reads neither, and makes none for a URI that names the driver."""
    path = file.as_posix()
    if "%" not in path and "?" not in path:
        return f"{_SQLITE}{path}"
    return f"sqlite+pysqlite:///{path.replace('%', '%25').replace('?', '%3F')}"


def artifacts_of(file: Path) -> Path:
    """Where a project's own artifacts lie."""
    return file.with_name("mlartifacts")


def open_store(config: dict[str, Any], project_path: Path) -> dict[str, Any]:
    """`resolve_store`, with the store checked and, if it is the project's own, made or brought along (see moved.py). Raises
    TrackingError."""
    resolved = resolve_store(config, project_path)
    uri = (resolved.get("server") or {}).get("mlflow_tracking_uri")
    check_store(uri)
    if resolved is not config:
        file = _file_of(uri)
        location = resolved["tracking"]["experiment"]["create_experiment_kwargs"]["artifact_location"]
        if file is not None and location == str(artifacts_of(file)):
            try:
                follow(file, artifacts_of(file))
            except sqlite3.Error as error:
                raise _unusable(file, str(error)) from error
    return resolved


def check_store(uri: str | None) -> None:
    """Ask the tracking store for an experiment, briefly; a sqlite file that is not there is made. Raises TrackingError if it
    does not answer or cannot be written to."""
    from mlflow.tracking import MlflowClient

    try:
        if file := _file_of(uri):
            _prepare(file)
        with _environment(_IMPATIENCE):
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:  # the stores raise what their libraries raise: SQLAlchemy, requests, cloud SDKs
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if file := _file_of(uri):
            raise _unusable(file, said) from error
        message = (
            f"MLflow's tracking store {uri} cannot be used: start its server or correct MLFLOW_TRACKING_URI (without "
            f"it runs are kept in this project). {said}"
        )
        raise TrackingError(re.sub(r"//[^/@\s]*@", "//***@", message)) from error  # no passwords


def _file_of(uri: str | None) -> Path | None:
    """The file of a sqlite URI; None for other stores, and for databases in memory."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if not uri or not uri.startswith("sqlite"):
        return None
    try:
        name = make_url(uri).database
    except ArgumentError:
        return None
    return Path(name).absolute() if name and name != ":memory:" and not name.startswith("file:") else None


def _prepare(file: Path) -> None:
    """Make the database if there is none, as a whole and by one process alone: MLflow's own way takes seconds, and two at once,
    or one that is killed, leave a half. Raises TrackingError if it cannot be written to."""
    try:
        if not file.exists() or not file.stat().st_size:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_name(f"{file.name}.lock"), timeout=_PATIENT_SECONDS):
                if not file.exists() or not file.stat().st_size:
                    _create(file)
        with closing(sqlite3.connect(file, timeout=_PATIENT_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            (own,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {own}")  # which a read-only file refuses
            connection.execute("ROLLBACK")
    except Timeout as error:
        raise _unusable(file, f"another process has been making it for {_PATIENT_SECONDS} seconds") from error
    except (sqlite3.Error, OSError) as error:
        raise _unusable(file, str(error)) from error


def _create(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)  # of a process that was killed
    store = SqlAlchemyStore(sqlite_uri(partial), artifacts_of(file).as_uri())
    store.engine.dispose()
    partial.replace(file)


def _unusable(file: Path, said: str) -> TrackingError:
    if "not a database" in said or "malformed" in said:
        cure = "it is damaged: put a copy of it back, or move it away, and an empty one is made"
    elif "locked" in said:
        cure = "another process is writing to it: try again when it has ended"
    elif "readonly" in said or "unable to open" in said or "ermission" in said or "ead-only" in said:
        cure = "give write permission to it and to its folder"
    else:
        cure = "move it away, and an empty one is made, or name another store in MLFLOW_TRACKING_URI"
    return TrackingError(f"MLflow's database {file} cannot be used ({said}): {cure}")
