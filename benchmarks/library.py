"""A library of many halves on a Ray cluster of this machine, whose workers and head die in the middle.

    python -m benchmarks.library FOLDER [--contents 40] [--styles 25] [--workers 2]

Contents and styles are folders of noise, the base model is tiny and random, so that what is measured is all but training. The
run goes through an MLflow server. One worker is killed (-9) as soon as a checkpoint is there, and the head when half of the
halves are registered; then a new head is started and the same command given again. At the end each half and pair must have one
version. Ends with exit code 1 if not. Nothing is downloaded; FOLDER must not be there yet. Needs pip install -e ".[ray]".
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import torch
from benchmarks._hardware import describe
from benchmarks.kills import ROOT, make_project
from PIL import Image

_PATIENCE = 3600.0
_POLL = 0.1


def pictures(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (2, 40, 48, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{index}.png")


def make_library(folder: Path, contents: int, styles: int) -> Path:
    """A project with a table of so many contents and styles."""
    project = make_project(folder / "project")
    rows = ["kind,path,noun"]
    for kind, number in (("content", contents), ("style", styles)):
        for at in range(number):
            own = f"data/01_raw/own/{kind}{at:03d}"
            pictures(project / own, len(rows))
            rows.append(f"{kind},{own},toy")
    (project / "data/01_raw/library.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return project


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


class Head:
    """A Ray cluster of this machine alone, of processes that are this one's."""

    def __init__(self, workers: int, environment: dict[str, str], log: Path):
        self.port = free_port()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={self.port}"]
        command += [f"--num-cpus={workers}", "--include-dashboard=false", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        with log.open("w", encoding="utf-8") as said:
            self._process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        if not wait(lambda: "Ray runtime started" in log.read_text(encoding="utf-8") or self._process.poll() is not None, 600):
            raise RuntimeError(f"no Ray cluster could be started: {log}")

    def processes(self, name: str) -> list[psutil.Process]:
        """Of the cluster, whose title has this name."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()[:1]):
                    found.append(process)
            except psutil.Error:  # it has ended meanwhile
                continue
        return found

    def kill(self, name: str) -> bool:
        """kill -9 of one such process."""
        for process in self.processes(name)[:1]:
            process.kill()
            return True
        return False

    def end(self) -> None:
        own = psutil.Process(self._process.pid).children(recursive=True) if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for process in own:
            if process.is_running():
                process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as own:
        return own.connect_ex(("127.0.0.1", port)) == 0


def wait(until: Callable[[], bool], seconds: float = _PATIENCE) -> bool:
    """Whether it came about in time."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True


def start_run(project: Path, head: Head, workers: int, environment: dict[str, str], log: Path) -> subprocess.Popen:
    ray = f"library.ray.address=127.0.0.1:{head.port},library.ray.workers={workers},library.ray.retries=3"
    command = [str(Path(sys.executable).with_name("kedro")), "run", "--pipelines=library", f"--params={ray}"]
    with log.open("w", encoding="utf-8") as said:
        return subprocess.Popen(command, cwd=project, env=environment, stdout=said, stderr=subprocess.STDOUT)


def registered(store: object) -> Counter:
    """Versions by registered name."""
    return Counter(version.name for version in store.search_model_versions(max_results=100_000))  # type: ignore[attr-defined]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--contents", type=int, default=40)
    parser.add_argument("--styles", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--undisturbed", action="store_true", help="kill nothing")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True)
    folder = given.folder.resolve()
    project = make_library(folder, given.contents, given.styles)
    port = free_port()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
    plain |= {"RAY_raylet_start_wait_time_s": "600"}  # of a machine that has other work, too
    plain |= {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "server.log").open("w", encoding="utf-8") as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=plain)
    heads = []
    try:
        wait(lambda: _answers(port), 300)
        environment = plain | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        report, well = play(project, folder, given, environment, heads)
    finally:
        for head in heads:
            head.end()
        server.terminate()
        server.wait()
    sys.stdout.write(report + "\n")
    return 0 if well else 1


def play(
    project: Path, folder: Path, given: argparse.Namespace, environment: dict[str, str], heads: list[Head]
) -> tuple[str, bool]:
    """Run, kill, run again -> a report, and whether all is there once."""
    from mlflow.tracking import MlflowClient

    store, halves = MlflowClient(environment["MLFLOW_TRACKING_URI"]), given.contents + given.styles
    heads.append(Head(given.workers, environment, folder / f"head-{len(heads)}.log"))
    begun, lines = time.monotonic(), []
    run = start_run(project, heads[-1], given.workers, environment, folder / "first.log")
    if not given.undisturbed:
        checkpoints = project / "data/06_models/checkpoints"
        wait(lambda: bool(list(checkpoints.rglob("*.safetensors"))) or run.poll() is not None)
        killed = wait(lambda: heads[-1].kill("ray::train_entry"), 60)
        lines.append(f"A worker was killed after {time.monotonic() - begun:.0f} s." if killed else "No worker was killed.")
        wait(lambda: len(registered(store)) >= halves / 2 or run.poll() is not None)
        there = registered(store)
        heads[-1].kill("gcs_server")
        lines.append(
            f"The head was killed after {time.monotonic() - begun:.0f} s, with {len(there)} of {halves} halves registered."
        )
        run.wait(_PATIENCE)
        lines.append(f"The run ended with exit code {run.returncode} after {time.monotonic() - begun:.0f} s.")
        heads[-1].end()
        heads.append(Head(given.workers, environment, folder / f"head-{len(heads)}.log"))
        begun = time.monotonic()
        run = start_run(project, heads[-1], given.workers, environment, folder / "second.log")
    run.wait(_PATIENCE)
    lines.append(
        f"The {'run' if given.undisturbed else 'second run'} took {time.monotonic() - begun:.0f} s, exit code {run.returncode}."
    )
    versions, wanted = registered(store), halves + given.contents * given.styles
    twice = sorted(name for name, number in versions.items() if number > 1)
    lines.append(f"{len(versions)} of {wanted} names are registered; with more than one version: {', '.join(twice) or 'none'}.")
    lines.append(times(store))
    about = describe("cpu", torch.float32)
    lines.append(f"{datetime.now(UTC):%d %B %Y}, {about['processor']}, {about['cores']} cores, {given.workers} workers.")
    return "\n".join(lines), run.returncode == 0 and len(versions) == wanted and not twice


def times(store: object) -> str:
    """Seconds of the runs that ended well, by what they made: the first and the last third of them in time."""
    experiments = [each.experiment_id for each in store.search_experiments()]  # type: ignore[attr-defined]
    runs = store.search_runs(experiments, order_by=["attributes.start_time ASC"], max_results=50_000)  # type: ignore[attr-defined]
    states = Counter(each.info.status for each in runs)
    told = ["| | number | first third s | last third s |", "|---|---|---|---|"]
    for name, begins in (("half", ("content ", "style ")), ("pair joined and registered", ("pair ",))):
        own = [each.info for each in runs if each.info.run_name.startswith(begins) and each.info.status == "FINISHED"]
        seconds = [(each.end_time - each.start_time) / 1000 for each in own]
        third = max(1, len(seconds) // 3)
        if seconds:
            parts = (statistics.median(seconds[:third]), statistics.median(seconds[-third:]))
            told.append(f"| {name} | {len(seconds)} | {parts[0]:.1f} | {parts[1]:.1f} |")
    return "\n".join([*told, "", f"MLflow's runs: {dict(states)}."])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
