"""Where MLflow's page shows runs and models: its first page is about language models."""

import os
import signal
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress


def lines(run_id: str, host: str, port: str) -> list[str]:
    """What to open to see a run and the registered models. host, port: of `kedro mlflow ui`."""
    import mlflow

    base, served = base_of(mlflow.get_tracking_uri(), host, port)
    experiment = mlflow.get_run(run_id).info.experiment_id
    return [
        f"Run: {run_page(base, experiment, run_id)}{'' if served else ' (after `kedro mlflow ui`)'}",
        f"Models: {models_page(base)}",
    ]


def serve_page(host: str, port: str, experiment: str, say: Callable[[str], None]) -> None:
    """Say where runs and models are shown, and serve the page until it is interrupted; a tracking server's own is opened."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    base, served = base_of(uri, host, port)
    say(f"Runs: {runs_page(base, experiment)}\nModels: {models_page(base)}")
    if served:
        webbrowser.open(runs_page(base, experiment))
        return
    options = [f"--backend-store-uri={uri}", f"--host={host}", f"--port={port}", "--workers=1"]  # for one person
    own = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # six processes for jobs that there are none of here
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", *options], env=own, start_new_session=True)
    try:
        server.wait()
    except KeyboardInterrupt:
        end_group(server)


def end_group(process: subprocess.Popen) -> None:
    """End a process that began a session of its own, and what it has started: MLflow's server leaves its workers behind."""
    with suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGTERM)  # noqa: TID251 - Windows does not come here
    process.wait()


def run_page(base: str, experiment: str, run_id: str) -> str:
    return f"{base}/#/experiments/{experiment}/runs/{run_id}"


def runs_page(base: str, experiment: str) -> str:
    """All runs of an experiment."""
    return f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def models_page(base: str) -> str:
    return f"{base}/#/models?workflowType=machine_learning"


def base_of(uri: str, host: str, port: str) -> tuple[str, bool]:
    """The page's address, and whether a tracking server has it; otherwise `kedro mlflow ui` serves it."""
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/"), True
    return f"http://{host}:{port}", False
