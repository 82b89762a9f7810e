"""MLflow at the edges: which store a run uses, whether it answers, loss curves and pictures while a node runs."""

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from b4m_pipeline.method.adapter import URI_KEY, Adapter

logger = logging.getLogger(__name__)

# MLflow's own defaults wait for minutes before they say that a server is away.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
_BATCH = 1000  # metrics that MLflow takes in one request


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
    server["mlflow_tracking_uri"] = f"sqlite:///{file}"
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


class MetricLogger:
    """Callable that sends metrics to an MLflow run, in batches, about once a second. Also a context manager, which
    sends the rest at its end.

    A server that goes away does not stop a training: one warning, everything is kept and sent later, with pauses that
    hold the time lost in attempts below a twentieth of the training's. Without an active run metrics go nowhere.
    """

    def __init__(self, prefix: str, interval: float = 1.0):
        """prefix: of the metrics' names, "<prefix>.<name>". interval: seconds between batches."""
        import mlflow

        run = mlflow.active_run()
        self._run_id = run.info.run_id if run else None
        self._prefix = prefix
        self._interval = interval
        self._waiting: list[Any] = []
        self._next_attempt = time.monotonic() + interval
        self._warned = False

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics of a step; they may be sent later."""
        if self._run_id is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(f"{self._prefix}.{name}", float(v), now, step) for name, v in metrics.items()]
        if time.monotonic() >= self._next_attempt:
            self.flush()

    def flush(self) -> bool:
        """Send all that waits; returns whether it could be sent."""
        from mlflow.tracking import MlflowClient

        start = time.monotonic()
        try:
            while self._waiting:
                MlflowClient().log_batch(self._run_id, metrics=self._waiting[:_BATCH])
                del self._waiting[:_BATCH]
        except Exception as error:  # see check_store; whatever it is, hours of training must not end by it
            if not self._warned:
                logger.warning("Loss curves cannot be sent to MLflow now, training goes on: %s", error)
                self._warned = True
            self._next_attempt = time.monotonic() + max(self._interval, 20 * (time.monotonic() - start))
            return False
        self._next_attempt = time.monotonic() + self._interval
        return True

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.flush():
            logger.warning(
                "%d values of %s did not reach MLflow; the loss curve beside the run's other reports has them all",
                len(self._waiting),
                self._prefix,
            )


def logged_curve(adapter: Adapter, prefix: str) -> pd.DataFrame:
    """A registered adapter's loss curve, a row a step: what the run which made it logged as "<prefix>.<name>". Empty, with a
    warning, if it cannot be had."""
    import mlflow
    from mlflow.exceptions import MlflowException

    curve = pd.DataFrame({"step": pd.Series(dtype=int)})
    try:
        client = mlflow.MlflowClient()
        run_id = client.get_model_version(*adapter.metadata[URI_KEY].removeprefix("models:/").rsplit("/", 1)).run_id
        for key in client.get_run(run_id).data.metrics:
            if key.startswith(f"{prefix}.") and not key.endswith("peak_memory_gib"):
                values = {point.step: point.value for point in client.get_metric_history(run_id, key)}
                column = pd.DataFrame({"step": list(values), key.removeprefix(f"{prefix}."): list(values.values())})
                curve = curve.merge(column, on="step", how="outer")
    except MlflowException as error:
        logger.warning("The loss curve of %s cannot be had: %s", adapter.metadata["name"], error)
    return curve.sort_values("step", ignore_index=True)


def log_picture(image: Image.Image, name: str) -> None:
    """Keep a picture with the active MLflow run as pictures/<name>.png. Without a run, or if that fails, go on."""
    import mlflow

    if mlflow.active_run() is None:
        return
    try:
        mlflow.log_image(image, artifact_file=f"pictures/{name}.png")
    except Exception as error:  # see MetricLogger.flush
        logger.warning("The picture %s cannot be sent to MLflow now: %s", name, error)


def log_text(text: str, name: str) -> None:
    """Keep a text with the active MLflow run as a file. Without a run, or if that fails, go on."""
    import mlflow

    if mlflow.active_run() is None:
        return
    try:
        mlflow.log_text(text, name)
    except Exception as error:  # see MetricLogger.flush
        logger.warning("%s cannot be sent to MLflow now: %s", name, error)


@contextmanager
def nested_run(name: str, tags: dict[str, str | None]) -> Iterator[Callable[[dict[str, float], dict[str, Image.Image]], None]]:
    """A run inside the active MLflow run; yields what logs metrics and pictures (by file name) to it. Without an active run,
    or if the store is away, nothing is logged and the work goes on."""
    import mlflow

    if mlflow.active_run() is None:
        yield lambda metrics, pictures: None
        return
    opened = False
    try:
        mlflow.start_run(run_name=name, nested=True, tags={key: value for key, value in tags.items() if value})
        opened = True
    except Exception as error:  # see MetricLogger.flush
        logger.warning("The run of %s cannot be sent to MLflow now: %s", name, error)

    def log(metrics: dict[str, float], pictures: dict[str, Image.Image]) -> None:
        if not opened:
            return
        log_metrics({key: value for key, value in metrics.items() if math.isfinite(value)})
        for index, picture in enumerate(pictures.values()):
            log_picture(picture, str(index))

    try:
        yield log
    finally:
        if opened:
            try:
                mlflow.end_run()
            except Exception as error:
                logger.warning("The run of %s cannot be ended in MLflow now: %s", name, error)


def log_metrics(metrics: dict[str, float], model_uri: str | None = None) -> None:
    """Keep final metrics with the active MLflow run and, given "models:/NAME/VERSION", with the logged model that this
    version was made from, so that the registry shows them. Without a run, or if that fails, go on."""
    import mlflow

    if mlflow.active_run() is None:
        return
    try:
        model_id = None
        if model_uri:
            name, version = model_uri.removeprefix("models:/").rsplit("/", 1)
            model_id = mlflow.MlflowClient().get_model_version(name, version).tags.get("model_id")
        mlflow.log_metrics(metrics, model_id=model_id)
    except Exception as error:  # see MetricLogger.flush
        logger.warning("Figures cannot be sent to MLflow now: %s", error)


def describe_evaluation(metrics: dict[str, float], model_uri: str | None) -> None:
    """Write final metrics, and where the active run's contact sheet is, into the description of "models:/NAME/VERSION". Without
    a run or a version, or if that fails, go on."""
    import mlflow

    from b4m_pipeline.registry.model_card import with_evaluation

    run = mlflow.active_run()
    if run is None or not model_uri:
        return
    try:
        name, version = model_uri.removeprefix("models:/").rsplit("/", 1)
        client = mlflow.MlflowClient()
        card = client.get_model_version(name, version).description or ""
        sheet = f"runs:/{run.info.run_id}/pictures/contact_sheet.png"
        client.update_model_version(name, version, with_evaluation(card, metrics, sheet))
    except Exception as error:  # see MetricLogger.flush
        logger.warning("%s cannot be described in the registry now: %s", model_uri, error)
