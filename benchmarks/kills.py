"""kill -9 at random moments of a whole run, on a tiny model: whether what comes out in the end is what comes out undisturbed.

    python -m benchmarks.kills [--kills 100] [--folder build/kills] [--seed 0]

Each round begins with a new project, kills `kedro run` up to three times, lets it go on to its end, and looks at weights,
pictures, registry and runs. What was found is kept in FOLDER/rounds.jsonl: the same command goes on from there. Nothing is
downloaded.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks._nodes import with_nodes
from PIL import Image
from tests import warm
from tests.tiny_models import SIDE, save_tiny
from tools.rehearse import merged

ROOT = Path(__file__).parents[1]
MOST = 3
"""Kills of a round, at most."""
ALIAS = "trial"
NAMES = ("b4m-content-teapot", "b4m-style-ink", "b4m-make-teapot-ink")
ADAPTERS = ("content", "style", "reconstructed", "made")
TABLES = ("evaluation_summary.csv", "content_break_loss_curve.csv", "make_loss_curve.csv")
_BREAK = {"steps": 8, "checkpoint_every": 2, "precision": "no"}
SHORT: dict[str, Any] = {
    "base_model": {"path": "model", "resolution": SIDE},
    "content": {"path": "data/01_raw/own/teapot", "noun": "teapot"},
    "style": {"path": "data/01_raw/own/ink"},
    "counterparts": {"drawn": {"images": 1, "steps": 1, "resolution": SIDE}},
    "frame": {"rank": 4, "alpha": 4},
    "ingestion": {"buckets": {"step": 8}},
    "captioning": {"vision_language_model": None},
    "content_break": _BREAK,
    "style_break": _BREAK,
    "make": _BREAK | {"rehearsal": {"images": 2, "steps": 1}},
    "evaluation": {"clip": None, "samples": 1, "steps": 1},
}
"""What is changed in the environment zimage: a tiny model, and less of everything that repeats."""
_DONE = re.compile(r"Completed node: (\S+)")
_SETTLED = {
    "taken back": re.compile(r"Taken back: a registration"),
    "finished": re.compile(r"its registration had been cut short"),
}


def make_project(folder: Path) -> Path:
    """A project with this configuration, a tiny model and two folders of pictures; the code stays here."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
    with_nodes(ROOT, folder / "conf").replace(folder / "conf/logging.yml")
    for name in ("conf/local", "src"):  # Kedro looks for the latter
        (folder / name).mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    parameters = merged(yaml.safe_load((folder / "conf/zimage/parameters.yml").read_text(encoding="utf-8")), SHORT)
    (folder / "conf/local/parameters.yml").write_text(yaml.safe_dump(parameters, sort_keys=False), encoding="utf-8")
    save_tiny("z_image", folder / "model")
    rng = np.random.default_rng(0)
    for name in ("teapot", "ink"):
        (folder / "data/01_raw/own" / name).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data/01_raw/own" / name / f"{index}.png")
    return folder


_RUN = """
import sys, yaml
from kedro.framework.cli import main
from kedro.framework.project import LOGGING
LOGGING.configure(yaml.safe_load(open("conf/logging.yml", encoding="utf-8")))  # what is forked has another project's
sys.argv = ["kedro", "run", "--pipelines=break_make"]
main()
"""


def run(project: Path, timeout: float = 600) -> subprocess.CompletedProcess:
    """`kedro run` there, killed after `timeout` seconds: subprocess.TimeoutExpired, with what it said, if it was."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    own |= {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    return warm.run(["python", "-c", _RUN], project, own, timeout)


def client(project: Path):
    """Of the project's store."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def outcome(project: Path) -> dict[str, Any]:
    """What must be the same with and without kills: weights, pictures and tables by their digests, cards without numbers."""
    from safetensors.numpy import load_file

    from b4m_pipeline.common.provenance import digest_of, file_digest

    data, weights = project / "data", {}
    for name in ADAPTERS:
        tensors = load_file(data / f"06_models/adapters/{name}/pytorch_lora_weights.safetensors")
        weights[name] = digest_of({key: value.tobytes().hex() for key, value in tensors.items()})
    pictures = {
        file.stem: Image.open(file).tobytes().hex() for file in sorted((data / "07_model_output/samples").glob("*.png"))
    }
    tables = {name: file_digest(data / "08_reporting" / name) for name in TABLES}
    store = client(project)
    cards = {name: plain(store.get_model_version_by_alias(name, ALIAS).description or "") for name in NAMES}
    return {"weights": weights, "pictures": digest_of(pictures), "tables": tables, "cards": cards}


def plain(card: str) -> str:
    """A card without the numbers of runs and versions."""
    return re.sub(r"(models:/[\w-]+)/\d+", r"\1", re.sub(r"(runs:|run_uuid=)/?\w+", r"\1", card))


def faults(project: Path, reference: dict[str, Any]) -> list[str]:
    """What is wrong after a run came to its end."""
    from b4m_pipeline.registry.adapters import MODEL_TAG, UNFINISHED, adapter_uri

    store, found = client(project), []
    versions = {name: list(store.search_model_versions(f"name = '{name}'")) for name in NAMES}
    for name, own in versions.items():
        if len(own) != 1:
            found.append(f"{name} has {len(own)} versions")
        if [version for version in own if UNFINISHED in version.tags]:
            found.append(f"{name} has a version that is not finished")
    if extra := {model.name for model in store.search_registered_models()} - set(NAMES):
        found.append(f"further names in the registry: {sorted(extra)}")
    (experiment,) = [each for each in store.search_experiments() if each.name == "b4m_pipeline"]
    kept = {version.tags.get(MODEL_TAG) for own in versions.values() for version in own}
    logged = {model.model_id for model in store.search_logged_models([experiment.experiment_id])}
    if logged != kept:
        found.append(f"{len(logged - kept)} logged models without a version, {len(kept - logged)} versions without one")
    states = Counter(each.info.status for each in store.search_runs([experiment.experiment_id]))
    if not states["FINISHED"] or set(states) - {"FINISHED", "KILLED"}:
        found.append(f"runs are {dict(states)}")
    try:
        now = outcome(project)
        found += [f"{part} differ: {_differences(reference[part], now[part])}" for part in now if now[part] != reference[part]]
    except Exception as error:  # whatever is missing is a fault
        found.append(f"{type(error).__name__}: {error}")
    for name in ("content", "style", "made"):
        if not adapter_uri(project / f"data/06_models/adapters/{name}"):
            found.append(f"the folder of {name} does not know its version")
    if list((project / "data").rglob(".new")) or (project / "data/.lock.json").exists():
        found.append("a folder that is being written, or a lock, is left")
    return found


def _differences(before: Any, now: Any) -> str:
    return ", ".join(sorted(key for key in before if before[key] != now.get(key))) if isinstance(before, dict) else "all"


def stage(said: str, order: list[str]) -> str:
    """Which node was under way, by the last one that was done."""
    done = _DONE.findall(said)
    if not done:
        return "start" if "Kedro project" not in said else order[0]
    following = [order[order.index(name) + 1 :] for name in done[-1:] if name in order]
    return following[0][0] if following and following[0] else "end"


def reference(folder: Path) -> dict[str, Any]:
    """The undisturbed run: its outcome, seconds and order of nodes. Kept in FOLDER/reference.json."""
    kept = folder / "reference.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    make_project(folder / "new")
    project = folder / "undisturbed"
    shutil.copytree(folder / "new", project)
    warm.run(["python", "-c", ""], folder, {})  # the libraries are imported once for all
    begun = time.monotonic()
    done = run(project)
    seconds = time.monotonic() - begun
    if done.returncode:
        raise RuntimeError(f"the undisturbed run failed:\n{done.stderr[-3000:]}")
    found = {"seconds": seconds, "order": _DONE.findall(done.stderr), "outcome": outcome(project)}
    if wrong := faults(project, found["outcome"]):
        raise RuntimeError(f"the undisturbed run is at fault: {wrong}")
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def play(folder: Path, number: int, seed: int, known: dict[str, Any]) -> dict[str, Any]:
    """One round: kills, in which stages, what the next runs settled, and the faults at the end."""
    project, lot = folder / f"round-{number}", random.Random(f"{seed} {number}")
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(folder / "new", project)
    killed: list[str] = []
    said = ""
    for _ in range(MOST):
        try:
            done = run(project, lot.uniform(0, known["seconds"]))
        except subprocess.TimeoutExpired as error:
            said += error.stderr
            killed.append(stage(error.stderr, known["order"]))
            continue
        said += done.stderr
        wrong = [] if done.returncode == 0 else [f"exit code {done.returncode}: {done.stderr[-600:]}"]
        break
    else:
        done = run(project)
        said += done.stderr
        wrong = [] if done.returncode == 0 else [f"exit code {done.returncode}: {done.stderr[-600:]}"]
    wrong += faults(project, known["outcome"])
    settled = {what: len(pattern.findall(said)) for what, pattern in _SETTLED.items()}
    if not wrong:
        shutil.rmtree(project)  # one that is at fault is kept, to be looked at
    return {"round": number, "killed": killed, "settled": settled, "faults": wrong}


def table(rounds: list[dict[str, Any]], order: list[str]) -> str:
    """Markdown: kills and faults by the stage that was killed."""
    kills = Counter(name for each in rounds for name in each["killed"])
    hit = Counter(name for each in rounds if each["faults"] for name in set(each["killed"]))
    lines = ["| killed during | kills | in rounds with a fault |", "|---|---|---|"]
    lines += [f"| {name} | {kills[name]} | {hit[name]} |" for name in ("start", *order, "end") if kills[name]]
    settled = {what: sum(each["settled"][what] for each in rounds) for what in _SETTLED}
    wrong = sum(bool(each["faults"]) for each in rounds)
    lines += ["", f"{kills.total()} kills in {len(rounds)} rounds, {wrong} rounds with a fault."]
    lines += [f"Registrations that were cut short: {settled['taken back']} taken back, {settled['finished']} finished."]
    return "\n".join([*lines, *(f"round {each['round']}: {'; '.join(each['faults'])}" for each in rounds if each["faults"])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/kills", help="where projects and results are kept")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    known, results = reference(folder), folder / "rounds.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    rounds = [json.loads(line) for line in lines]
    while sum(len(each["killed"]) for each in rounds) < arguments.kills:
        rounds.append(play(folder, len(rounds), arguments.seed, known))
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounds[-1]) + "\n")
        sys.stderr.write(f"round {len(rounds)}: {rounds[-1]['killed']} {rounds[-1]['faults'] or 'as undisturbed'}\n")
    sys.stdout.write(table(rounds, known["order"]) + "\n")
    return 1 if any(each["faults"] for each in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
