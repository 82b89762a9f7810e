"""Training: an ordinary `kedro run` in a process of its own, watched through MLflow and its log."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import psutil

from b4m_pipeline.common.whole_files import write_whole
from b4m_pipeline.studio.asked import RunRequest
from b4m_pipeline.studio.intake import Intake
from b4m_pipeline.studio.recipes import write_config

TAG = "studio.run"
"""Of the MLflow run; a run that was stopped and went on has several MLflow runs."""
STAGES = {
    "ingestion": "Pictures",
    "content_break": "Content",
    "style_break": "Style",
    "joint_make": "Make",
    "evaluation": "Evaluation",
}
"""Of break_make, as the page calls them; the metrics' names begin with these."""
_POINTS = 240
_TAIL = 30
_PATIENCE = 15  # seconds between asking a process to end and ending it
_ENDED = ("done", "stopped", "failed")


class RunError(ValueError):
    """A run that cannot be started, stopped or gone on with."""


@dataclass
class Run:
    """A run of the page. state: running, stopping, done, stopped or failed."""

    request: dict[str, Any]
    steps: dict[str, int]
    """Optimizer steps of each stage that trains."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "running"
    message: str = ""
    started: float = field(default_factory=time.time)
    resumed: int = 0
    process: int | None = None
    """Of the operating system, while it runs."""


class Runs:
    """At most one run at a time; the newest is kept on disk, so that it can be gone on with after the studio was closed."""

    def __init__(self, project: Path, folder: Path, env: str | None, intake: Intake, release: Callable[[], None]):
        """folder: where configurations, logs and records are kept; release: called before a run, to make room in memory."""
        self.project, self.folder, self.env, self.intake, self._release = project, folder / "runs", env, intake, release
        self._lock = threading.Lock()
        self._process: subprocess.Popen | psutil.Process | None = None
        self.current = self._newest()

    def _newest(self) -> Run | None:
        records = sorted(self.folder.glob("*/record.json"), key=lambda file: file.stat().st_mtime)
        if not records:
            return None
        run = Run(**json.loads(records[-1].read_text(encoding="utf-8")))
        if run.state in _ENDED:
            return run
        self._process = _alive(run.process, str(self.folder / run.id))  # the studio was killed, the run perhaps not
        if self._process:
            threading.Thread(target=self._wait, args=(run, self._process), daemon=True).start()
        else:
            run.state, run.message = "stopped", "The studio was closed while this ran. Go on from the last checkpoint."
        return run

    def start(self, request: RunRequest) -> Run:
        """Start break_make. Raises RunError if a run is under way, and as `Intake.concept` does."""
        with self._lock:
            self._require_free()
            content, style = (self.intake.concept(kind, getattr(request, kind)) for kind in ("content", "style"))
            params: dict[str, Any] = {"seed": request.seed}
            for kind, concept in (("content", content), ("style", style)):
                params[kind] = concept.model_dump(include={"path", "name", "token", "noun"})
            steps = dict.fromkeys(("content_break", "style_break"), request.break_steps) | {"make": request.make_steps}
            for name, number in steps.items():
                params[name] = {"steps": number}
                if request.previews:
                    params[name]["samples"] = {"every": request.previews}
            run = Run(request.model_dump(), {key.replace("make", "joint_make"): value for key, value in steps.items()})
            own = self.folder / run.id
            own.mkdir(parents=True)
            write_config({"pipelines": "break_make", "params": params}, own / "config.yml")
            self._launch(run)
            return run

    def go_on(self) -> Run:
        """Give the newest run's command again: it continues from its checkpoints. Raises RunError."""
        with self._lock:
            self._require_free()
            run = self.current
            if run is None or run.state == "done":
                raise RunError("There is no run to go on with")
            run.state, run.message, run.resumed = "running", "", run.resumed + 1
            self._launch(run)
            return run

    def _require_free(self) -> None:
        if self.current is not None and self.current.state not in _ENDED:
            began = time.strftime("%H:%M", time.localtime(self.current.started))
            raise RunError(f"A run is under way since {began}: watch it, or stop it first")

    def _launch(self, run: Run) -> None:
        self._release()
        own = self.folder / run.id
        command = [sys.executable, "-m", "kedro", "run", f"--config={own / 'config.yml'}"]
        command += [f"--env={self.env}"] if self.env else []
        environment = os.environ | {"MLFLOW_RUN_CONTEXT": json.dumps({TAG: run.id}), "PYTHONUNBUFFERED": "1"}
        with open(own / "log.txt", "ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.project, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the studio, which ends this in order
            )  # fmt: skip
        self.current, run.process = run, self._process.pid
        self._record(run)
        threading.Thread(target=self._wait, args=(run, self._process), daemon=True).start()

    def _wait(self, run: Run, process: "subprocess.Popen | psutil.Process") -> None:
        code = process.wait()
        if code is None:  # of a process that another studio started
            code = int("evaluation" not in {key.split(".")[0] for each in _mlflow_runs(run) for key in each.data.metrics})
        if run.state == "stopping":
            run.state, run.message = "stopped", "Stopped. Go on continues from the last checkpoint."
        elif code == 0:
            run.state = "done"
        else:
            run.state, run.message = "failed", last_error(self.log(run)) or f"The run ended with exit code {code}; see its log"
        if code != 0:
            _close_in_mlflow(run)
        self._record(run)

    def stop(self) -> None:
        """Ask the run to end. Raises RunError if none is under way."""
        with self._lock:
            run, process = self.current, self._process
            if run is None or process is None or run.state != "running":
                raise RunError("No run is under way")
            run.state = "stopping"
            process.terminate()
            threading.Thread(target=_end, args=(process,), daemon=True).start()

    def close(self) -> str:
        """End the run, if one is under way, before the studio ends. Returns what is to be said of it, "" for nothing."""
        if not (self.current and self._process and self.current.state in ("running", "stopping")):
            return ""
        self.current.state = "stopping"
        self._process.terminate()
        _end(self._process)
        self.current.state, self.current.message = "stopped", "The studio was closed. Go on from the last checkpoint."
        self._record(self.current)
        return "The run was stopped. Start the studio again and press Go on: it continues from its last checkpoint."

    def _record(self, run: Run) -> None:
        write_whole(self.folder / run.id / "record.json", json.dumps(asdict(run), indent=2))

    def log(self, run: Run) -> str:
        """The end of what the run said, progress bars as they stand last."""
        file = self.folder / run.id / "log.txt"
        if not file.is_file():
            return ""
        with open(file, "rb") as handle:
            handle.seek(max(0, file.stat().st_size - 60_000))
            text = handle.read().decode("utf-8", errors="replace")
        return tidy(text)

    def watch(self) -> dict[str, Any] | None:
        """The newest run for the page: its state, stages, losses, pictures and log. None if there was none."""
        run = self.current
        if run is None:
            return None
        told: dict[str, Any] = asdict(run) | {"log": self.log(run), "stages": [], "curves": {}, "pictures": [], "mlflow": []}
        try:
            told |= _from_mlflow(run)
        except Exception as error:  # the stores raise what their libraries raise; the run goes on without them
            told["trouble"] = f"MLflow cannot be asked: {str(error).strip().splitlines()[0]}"
        return told


def _alive(process: int | None, named: str) -> psutil.Process | None:
    """The process, if it is there and its command names a path of the run."""
    try:
        found = psutil.Process(process) if process else None
        return found if found and any(named in part for part in found.cmdline()) else None
    except psutil.Error:
        return None


def _end(process: "subprocess.Popen | psutil.Process") -> None:
    try:
        process.wait(_PATIENCE)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        process.kill()
        process.wait()


def tidy(text: str) -> str:
    """The last lines of a log, each bar's last state alone."""
    lines = [line.rsplit("\r", 1)[-1] for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r\n", "\n").split("\n")]
    return "\n".join([line for line in lines if line.strip()][-_TAIL:])


def last_error(log: str) -> str:
    """The message of the last error in a log."""
    found = re.findall(r"^(?:Error|[A-Za-z.]*Error): (.+)$", log, re.MULTILINE)
    return found[-1] if found else ""


def _mlflow_runs(run: Run) -> list[Any]:
    """Of this run, the oldest first."""
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{TAG}` = '{run.id}'", order_by=["attributes.start_time ASC"])
    return [each for each in found if "mlflow.parentRunId" not in each.data.tags]


def _close_in_mlflow(run: Run) -> None:
    """A process that was ended leaves its MLflow run open, or closed as if it had finished."""
    try:
        for each in _mlflow_runs(run)[-1:]:
            status = "KILLED" if run.state == "stopped" else "FAILED"
            mlflow.MlflowClient().set_terminated(each.info.run_id, status)
    except Exception as error:  # as in Runs.watch
        run.message += f" MLflow could not be told: {str(error).strip().splitlines()[0]}"


def _from_mlflow(run: Run) -> dict[str, Any]:
    client = mlflow.MlflowClient()
    curves: dict[str, dict[int, float]] = {}
    pictures: list[dict[str, str]] = []
    own = _mlflow_runs(run)
    done: set[str] = set()
    for each in own:
        done |= {key.split(".")[0] for key in each.data.metrics}
        for key in each.data.metrics:
            if ".loss_" in key:
                points = client.get_metric_history(each.info.run_id, key)
                curves[key] = curves.get(key, {}) | {point.step: point.value for point in points}
        pictures += [{"run": each.info.run_id, "path": path} for path in _pictures(client, each.info.run_id)]
    last = {key: max(points) for key, points in curves.items() if points}
    return {
        "stages": stages(run, done, last),
        "curves": {key: thinned(points) for key, points in curves.items()},
        "pictures": pictures,
        "mlflow": [{"run": each.info.run_id, "experiment": each.info.experiment_id} for each in own],
    }


def stages(run: Run, logged: set[str], last: dict[str, int]) -> list[dict[str, Any]]:
    """Where each stage stands. logged: prefixes of the metrics that there are; last: curves' last steps, from 0."""
    names = list(STAGES)
    begun = max([names.index(name) for name in logged if name in names], default=0)
    at_once = {"content_break", "style_break"} <= logged and begun == names.index("style_break")
    found: list[dict[str, Any]] = []
    for place, (name, title) in enumerate(STAGES.items()):
        steps = run.steps.get(name)
        at = max([step + 1 for key, step in last.items() if key.startswith(f"{name}.")], default=0)
        state = "waiting"
        beside = at_once and place < begun and at > 0
        if run.state == "done" or (place < begun and not beside) or (steps and at >= steps):
            state = "done"
        elif beside or place == begun or (place == begun + 1 and all(own["state"] == "done" for own in found)):
            state = "running" if run.state in ("running", "stopping") else "stopped"
        reused = state == "done" and steps is not None and not at
        found.append({"name": name, "title": title, "state": state, "step": at, "steps": steps, "reused": reused})
    return found


def thinned(points: dict[int, float]) -> list[tuple[int, float]]:
    """At most _POINTS of a curve, each the mean of its neighbourhood."""
    steps = sorted(points)
    size = max(1, -(-len(steps) // _POINTS))
    groups = [steps[start : start + size] for start in range(0, len(steps), size)]
    return [(group[-1], sum(points[step] for step in group) / len(group)) for group in groups]


def _pictures(client: Any, run_id: str, path: str = "pictures") -> list[str]:
    """PNG artifacts of a run, those of folders too."""
    found: list[str] = []
    for file in client.list_artifacts(run_id, path):
        found += _pictures(client, run_id, file.path) if file.is_dir else [file.path] * file.path.endswith(".png")
    return found
