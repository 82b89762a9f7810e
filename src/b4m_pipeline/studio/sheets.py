"""Evaluations, as the runs logged them, and pictures of runs."""

import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow

from b4m_pipeline.evaluation.table import MEASURES
from b4m_pipeline.registry.adapters import NAME_OF_KIND

MEANINGS = {
    "kept": "the lower of content and style kept",
    "content_kept": "content, as a share of what is possible",
    "style_kept": "style, as a share of what is possible",
    "content": "content by EfficientNet",
    "style": "style by EfficientNet",
    "colour": "palette, against the style's",
    "s_harm": "harmonic mean by EfficientNet",
    "content_clip": "content by CLIP",
    "style_clip": "style by CLIP",
    "s_harm_clip": "harmonic mean by CLIP",
    "prompt_clip": "prompt by CLIP",
    "truth": "likeness to the true drawing",
    "truth_distance": "distance to the true drawing",
    "truth_colour": "palette, against the true drawing's",
}
_RUN = re.compile(r"[0-9a-f]{32}")
_PICTURE = re.compile(r"pictures/[\w /.-]+\.png")
_MOST = 200
_AT_ONCE = 80  # runs in one request: they stand in its address


class SheetError(ValueError):
    """A run or a picture that MLflow does not have."""


def evaluations() -> list[dict[str, Any]]:
    """Runs with an evaluation or with a sheet of several ways to compose, newest first: id, title, started, kept, sheets."""
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=_MOST, order_by=["attributes.start_time DESC"])
    made, found = _made([run.info.run_id for run in runs]), []
    for run in runs:
        measured = any(key.startswith("evaluation.") for key in run.data.metrics)
        composes = "compose" in f"{run.info.run_name} {run.data.tags.get('pipeline_names')}"
        listed = [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] if composes else []
        if measured or "pictures/composed.png" in listed:
            found.append({
                "run": run.info.run_id,
                "experiment": run.info.experiment_id,
                "title": made.get(run.info.run_id) or run.info.run_name or run.info.run_id[:8],
                "started": run.info.start_time,
                "measured": measured,
            })  # fmt: skip
    return found


def _made(runs: list[str]) -> dict[str, str]:
    """What the made adapters of these runs are of."""
    client, made = mlflow.MlflowClient(), {}
    for first in range(0, len(runs), _AT_ONCE):
        listed = ", ".join(f"'{run}'" for run in runs[first : first + _AT_ONCE])
        for version in client.search_model_versions(f"run_id IN ({listed}) and tags.`kind` = 'made'"):
            made[version.run_id] = " + ".join(version.tags[key] for key in ("content_name", "style_name"))
    return made


def sheet(run_id: str) -> dict[str, Any]:
    """An evaluation as a table, and its pictures. Raises SheetError."""
    run, client = _run(run_id), mlflow.MlflowClient()
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in run.data.metrics.items():
        if key.startswith("evaluation."):
            _, system, kind, measure = key.split(".", 3)
            rows.setdefault((system.replace("_", " "), kind), {})[measure] = value
    measures = [name for name in MEASURES if any(name in row for row in rows.values())]
    order = ["base", "content alone", "style alone", "halves joined", "made"]
    kinds = ["composition", "recontext"]

    def place(row: tuple[str, str]) -> tuple[int, int, str]:
        system, kind = row
        of_kind = kinds.index(kind) if kind in kinds else len(kinds)
        return of_kind, order.index(system) if system in order else len(order), kind

    versions = client.search_model_versions(f"run_id = '{run_id}'")
    return {
        "run": run_id,
        "title": run.info.run_name or run_id[:8],
        "measures": [{"name": name, "meaning": MEANINGS.get(name, name)} for name in measures],
        "rows": [{"system": row[0], "kind": row[1], "figures": rows[row]} for row in sorted(rows, key=place)],
        "pictures": [file.path for file in client.list_artifacts(run_id, "pictures") if file.path.endswith(".png")],
        "versions": [{"name": version.name, "version": str(version.version), "kind": _kind(version)} for version in versions],
    }


def _kind(version: Any) -> str:
    return NAME_OF_KIND.get(version.tags.get("kind", ""), "")


def picture(run_id: str, path: str) -> bytes:
    """A picture of a run, as a PNG file. Raises SheetError."""
    _run(run_id)
    if not _PICTURE.fullmatch(path) or ".." in path.split("/"):
        raise SheetError(f"{path} is no picture of a run")
    folder = path.rsplit("/", 1)[0]
    if path not in [file.path for file in mlflow.MlflowClient().list_artifacts(run_id, folder)]:
        raise SheetError(f"The run has no picture {path}")
    with tempfile.TemporaryDirectory() as own:  # MLflow leaves what it fetches from a server where it was put
        return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{path}", dst_path=own)).read_bytes()


def _run(run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    if not _RUN.fullmatch(run_id):
        raise SheetError(f"{run_id!r} is no run")
    try:
        return mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise SheetError(f"MLflow has no run {run_id}") from error
