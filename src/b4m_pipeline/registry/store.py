"""Which MLflow store a run uses, and whether it answers."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# MLflow's own defaults wait for minutes before they say that a server is away.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


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
    take both from the working directory. A store named by MLFLOW_TRACKING_URI is left as it is."""
    server, tracking = dict(config.get("server") or {}), dict(config.get("tracking") or {})
    uri = server.get("mlflow_tracking_uri")
    if uri is None or not uri.startswith("sqlite:///") or uri == os.environ.get("MLFLOW_TRACKING_URI"):
        return config
    file = project_path / uri.removeprefix("sqlite:///")
    server["mlflow_tracking_uri"] = f"sqlite:///{file.as_posix()}"
    experiment = dict(tracking.get("experiment") or {})
    create = dict(experiment.get("create_experiment_kwargs") or {})
    create.setdefault("artifact_location", str(file.with_name("mlartifacts")))
    return config | {"server": server, "tracking": tracking | {"experiment": experiment | {"create_experiment_kwargs": create}}}


def check_store(uri: str | None) -> None:
    """Ask the tracking store for an experiment, briefly. Raises TrackingError if it does not answer or is unusable."""
    from mlflow.tracking import MlflowClient

    try:
        with _environment(_IMPATIENCE):
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:  # the stores raise what their libraries raise: SQLAlchemy, requests, cloud SDKs
        message = (
            f"MLflow's tracking store {uri} cannot be used: start its server or correct MLFLOW_TRACKING_URI (without "
            f"it runs are kept in this project). {str(error).strip().splitlines()[0]}"
        )
        raise TrackingError(re.sub(r"//[^/@\s]*@", "//***@", message)) from error  # no passwords
