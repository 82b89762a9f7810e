"""Which MLflow run work belongs to, also in threads and processes that Kedro starts: MLflow knows an active run only in the
thread that began it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

logger = logging.getLogger(__name__)

_RUN = "B4M_MLFLOW_RUN"


def hand_on(run_id: str | None) -> None:
    """Say which run the work of this process, its threads and the processes that it starts belongs to; None: no more."""
    if run_id is None:
        os.environ.pop(_RUN, None)
    else:
        os.environ[_RUN] = run_id


def current_run() -> str | None:
    """Id of the run that this work belongs to: the active one, or the one that was handed on. None if there is none."""
    import mlflow

    active = mlflow.active_run()
    return active.info.run_id if active else os.environ.get(_RUN)


@contextmanager
def run_of_work(name: str) -> Iterator[str]:
    """Id of the run that this work belongs to, or of one of its own with this name, which ends with it."""
    import mlflow

    if known := current_run():
        yield known
    else:
        with mlflow.start_run(run_name=name) as run:
            yield run.info.run_id


@contextmanager
def taking_part(run_id: str | None, tracking_uri: str) -> Iterator[None]:
    """Log to a run of another process, which goes on with it; None: to none. A store that is away stops no work."""
    import mlflow

    if run_id is not None:
        try:
            mlflow.set_tracking_uri(tracking_uri)
            mlflow.start_run(run_id=run_id)
        except Exception as error:  # the stores raise what their libraries raise: SQLAlchemy, requests, cloud SDKs
            logger.warning("MLflow's run cannot be had now, nothing of this is logged to it: %s", error)
    try:
        yield
    finally:
        with suppress(Exception):  # likewise; this process is done with the run, whatever the store says
            mlflow.end_run("RUNNING")


def end_active(status: str) -> None:
    """End all runs that are active in this thread."""
    import mlflow

    while mlflow.active_run():
        mlflow.end_run(status)
