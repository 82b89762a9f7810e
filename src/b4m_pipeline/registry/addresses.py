"""Where MLflow's page shows runs and models: its first page is about language models."""

from typing import Any


def lines(run_id: str, base: str, served: bool) -> list[str]:
    """What to open to see a run and the registered models. base: the page's address; served: whether it is there by itself."""
    import mlflow

    experiment = mlflow.get_run(run_id).info.experiment_id
    start = "" if served else "kedro mlflow ui, then "
    return [f"Run and models: {start}{run_page(base, experiment, run_id)} and {models_page(base)}"]


def run_page(base: str, experiment: str, run_id: str) -> str:
    return f"{base}/#/experiments/{experiment}/runs/{run_id}"


def runs_page(base: str, experiment: str) -> str:
    """All runs of an experiment."""
    return f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def models_page(base: str) -> str:
    return f"{base}/#/models?workflowType=machine_learning"


def base_of(uri: str, ui: Any) -> tuple[str, bool]:
    """The page's address and whether a server has it: a tracking server's own, otherwise that of `kedro mlflow ui` with the
    settings `ui` of mlflow.yml."""
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/"), True
    return f"http://{ui.host}:{ui.port}", False
