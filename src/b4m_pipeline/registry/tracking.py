"""What a run keeps in MLflow while it works: loss curves, pictures, texts, figures. A store that is away stops no work."""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.method.adapter import URI_KEY, Adapter
from b4m_pipeline.registry.model_card import with_evaluation, with_pictures

logger = logging.getLogger(__name__)

MADE_PICTURE = "made"
"""Of a run: what an evaluation drew first for content and style together."""
_BATCH = 1000  # metrics that MLflow takes in one request


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
        except Exception as error:  # as in _going_on
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
        run_id = client.get_model_version(*_name_and_version(adapter.metadata[URI_KEY])).run_id
        for key in client.get_run(run_id).data.metrics:
            if key.startswith(f"{prefix}.") and not key.endswith("peak_memory_gib"):
                values = {point.step: point.value for point in client.get_metric_history(run_id, key)}
                column = pd.DataFrame({"step": list(values), key.removeprefix(f"{prefix}."): list(values.values())})
                curve = curve.merge(column, on="step", how="outer")
    except MlflowException as error:
        logger.warning("The loss curve of %s cannot be had: %s", adapter.metadata["name"], error)
    return curve.sort_values("step", ignore_index=True)


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Whatever a store raises, hours of work must not end by it: a warning, and the block is left."""
    try:
        yield
    except Exception as error:  # the stores raise what their libraries raise: SQLAlchemy, requests, cloud SDKs
        logger.warning("%s cannot be sent to MLflow now: %s", what, error)


def log_picture(image: Image.Image, name: str) -> None:
    """Keep an image with the active MLflow run as pictures/<name>.png. Without a run, or if that fails, go on."""
    import mlflow

    if mlflow.active_run():
        with _going_on(f"The picture {name}"):
            mlflow.log_image(image, artifact_file=f"pictures/{name}.png")


def log_text(text: str, name: str) -> None:
    """Keep a text with the active MLflow run as a file. Without a run, or if that fails, go on."""
    import mlflow

    if mlflow.active_run():
        with _going_on(name):
            mlflow.log_text(text, name)


@contextmanager
def nested_run(name: str, tags: dict[str, str | None]) -> Iterator[Callable[[dict[str, float], dict[str, Image.Image]], None]]:
    """A run inside the active MLflow run; yields what logs metrics and pictures (by file name) to it. Without an active run,
    or if the store is away, nothing is logged and the work goes on."""
    import mlflow

    opened = False
    if mlflow.active_run():
        with _going_on(f"The run of {name}"):
            mlflow.start_run(run_name=name, nested=True, tags={key: value for key, value in tags.items() if value})
            opened = True

    def log(metrics: dict[str, float], pictures: dict[str, Image.Image]) -> None:
        if opened:
            log_metrics({key: value for key, value in metrics.items() if math.isfinite(value)})
            for index, picture in enumerate(pictures.values()):
                log_picture(picture, str(index))

    try:
        yield log
    finally:
        if opened:
            with _going_on(f"The end of the run of {name}"):
                mlflow.end_run()


def log_metrics(metrics: dict[str, float], model_uri: str | None = None) -> None:
    """Keep final metrics with the active MLflow run and, given "models:/NAME/VERSION", with the logged model that this
    version was made from, so that the registry shows them. Without a run, or if that fails, go on."""
    import mlflow

    if mlflow.active_run():
        with _going_on("Figures"):
            model_id = None
            if model_uri:
                model_id = mlflow.MlflowClient().get_model_version(*_name_and_version(model_uri)).tags.get("model_id")
            mlflow.log_metrics(metrics, model_id=model_id)


def describe_evaluation(metrics: dict[str, float], model_uri: str | None) -> None:
    """Write final metrics, and where the active run's contact sheet is, into the description of "models:/NAME/VERSION". Without
    a run or a version, or if that fails, go on."""
    import mlflow

    if (run := mlflow.active_run()) and model_uri:
        with _going_on(f"The description of {model_uri}"):
            name, version = _name_and_version(model_uri)
            client = mlflow.MlflowClient()
            card = client.get_model_version(name, version).description or ""
            sheet = f"runs:/{run.info.run_id}/pictures/contact_sheet.png"
            shown = {
                "made": _address(run.info.run_id, f"pictures/{MADE_PICTURE}.png"),
                "contact sheet": _address(run.info.run_id, "pictures/contact_sheet.png"),
            }
            client.update_model_version(name, version, with_evaluation(card, metrics, sheet, shown))
            model, kept = client.get_registered_model(name), metrics.get("evaluation.made.composition.kept")
            client.update_registered_model(name, with_pictures(model.description or "", version, kept, shown))


def _address(run_id: str, path: str) -> str:
    """Of an artifact, from MLflow's page, which shows pictures from there in descriptions."""
    return f"get-artifact?path={quote(path, safe='')}&run_uuid={run_id}"


def rename_run(run_id: str, before: str, now: str) -> None:
    """Give a run another name, if it has the name `before`."""
    from mlflow import MlflowClient

    with _going_on("The run's name"):
        client = MlflowClient()
        if client.get_run(run_id).info.run_name == before:
            client.update_run(run_id, name=now)


def log_inputs(run_id: str, manifest: pd.DataFrame, folders: dict[str, str]) -> None:
    """Name the pictures of a manifest as a run's datasets, one for each role and concept. folders: by concept, as far as known.
    The digest is of the pictures' files."""
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for (role, concept), rows in manifest.groupby(["role", "concept"], sort=False):
        files = rows.drop_duplicates("sha256")
        about = {"pictures": len(files), "licences": rows.get("licence", pd.Series(dtype=str)).value_counts().to_dict()}
        source, digest = json.dumps({"uri": folders.get(concept, "")}), digest_of(sorted(files["sha256"]))
        dataset = Dataset(concept, digest, "local", source, profile=json.dumps(about))
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", role)]))
    with _going_on("The run's datasets"):
        MlflowClient().log_inputs(run_id, found)


def evaluated_picture(model_uri: str) -> Image.Image | None:
    """What the evaluation of "models:/NAME/VERSION" drew first for content and style together. None if it was not evaluated,
    or, with a warning, if the picture cannot be had."""
    import mlflow

    try:
        card = mlflow.MlflowClient().get_model_version(*_name_and_version(model_uri)).description or ""
        if not (found := re.search(r"^Contact sheet: `(runs:/.+)/contact_sheet\.png`$", card, re.MULTILINE)):
            return None
        row = mlflow.artifacts.load_image(f"{found[1]}/samples_made_composition.png")
    except Exception as error:  # as in _going_on
        logger.warning("The pictures of the evaluation of %s cannot be had: %s", model_uri, error)
        return None
    return row.crop((0, 0, row.height, row.height))


def _name_and_version(uri: str) -> tuple[str, str]:
    """Of "models:/NAME/VERSION"."""
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    return name, version
