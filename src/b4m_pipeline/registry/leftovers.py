"""What runs leave behind whose process was killed: runs that count as under way for ever, and registrations cut short.

Every run is tagged, in the request that creates it, with the lock that its process holds (see common/locks.py). When the lock
is free, the process is gone.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m_pipeline.common.locks import HOST, is_free
from b4m_pipeline.registry.adapters import MODEL_TAG, UNFINISHED

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

HOST_TAG, LOCK_TAG, PID_TAG = "process.host", "process.lock", "process.id"
_CONTEXT = "MLFLOW_RUN_CONTEXT"  # MLflow's: tags of every run that this process and its children begin


@contextmanager
def signed(lock: Path) -> Iterator[None]:
    """Runs that are begun here say which lock their process holds."""
    before = sign(lock)
    try:
        yield
    finally:
        unsign(before)


def sign(lock: Path) -> str | None:
    """The same until `unsign`, which takes what this returns."""
    before = os.environ.get(_CONTEXT)
    own = {HOST_TAG: HOST, LOCK_TAG: str(lock), PID_TAG: str(os.getpid())}
    os.environ[_CONTEXT] = json.dumps(json.loads(before or "{}") | own)
    return before


def unsign(before: str | None) -> None:
    """Tag further runs as before."""
    if before is None:
        os.environ.pop(_CONTEXT, None)
    else:
        os.environ[_CONTEXT] = before


def clear(experiment_id: str, own: Path) -> None:
    """End the experiment's runs whose process on this machine is gone as KILLED, and finish or take back what these registered.
    own: the lock that this process holds, in which it has no run yet. A store that does not answer stops nothing: a warning."""
    from mlflow import MlflowClient

    client = MlflowClient()
    try:
        criterion = f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{HOST}'"
        for run in client.search_runs([experiment_id], criterion):
            lock = Path(run.data.tags.get(LOCK_TAG, ""))
            if lock == own or is_free(lock):
                _settle(client, run)
    except Exception as error:  # the stores raise what their libraries raise: SQLAlchemy, requests, cloud SDKs
        logger.warning("What earlier runs left behind in MLflow cannot be cleared now: %s", error)


def _settle(client: "MlflowClient", run: Any) -> None:
    """Models first: a run that is still under way is looked at again, should this be cut short."""
    run_id, experiment = run.info.run_id, run.info.experiment_id
    kept = set()
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        if _finished(client, version):
            kept.add(version.tags.get(MODEL_TAG))
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if model.model_id not in kept:
            client.delete_logged_model(model.model_id)
            if not client.search_model_versions(f"name = '{model.name}'") and client.search_registered_models(
                f"name = '{model.name}'"
            ):
                client.delete_registered_model(model.name)
            logger.info("Taken back: a registration of %s that was cut short", model.name)
    client.set_terminated(run_id, "KILLED")
    logger.info("The run %s was cut short; it counts as KILLED now", run.info.run_name)


def _finished(client: "MlflowClient", version: Any) -> bool:
    """Finish a version that has its card and may lack its alias; without a card take it back. Whether it is there then."""
    if not (alias := version.tags.get(UNFINISHED)):
        return True
    if not version.description:
        client.delete_model_version(version.name, version.version)
        return False
    client.set_registered_model_alias(version.name, alias, version.version)
    client.delete_model_version_tag(version.name, version.version, UNFINISHED)
    logger.info("models:/%s/%s is %s now; its registration had been cut short", version.name, version.version, alias)
    return True
