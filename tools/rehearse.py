"""Every stage at a base model's full size, without its weights: does it run, how long does it take, what memory does it need?

    python -m tools.rehearse sdxl --folder FOLDER [--resolution 512]

writes a model of random weights into FOLDER (7 to 21 GB, kept for the next time), runs each pipeline for two steps with the
configuration of that environment and two folders of photographs, in a project of its own, and prints a table. The project and
what it registered are in FOLDER/project-NAME. Images are noise.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter

logger = logging.getLogger("tools.rehearse")

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("sdxl", "flux2", "zimage")  # of tools.full_size, which imports torch: a child's peak would start at ours
COMMANDS = {
    **{name: ["run", f"--pipelines={name}"] for name in ("ingestion", "content_break", "style_break", "plp_reconstruction")},
    **{name: ["run", f"--pipelines={name}"] for name in ("joint_make", "evaluation", "generate")},
    "export": ["export", "models:/b4m-make-bottle-dusk@trial", "exported.safetensors"],
}
BREAK = {"steps": 2}
SHORT: dict[str, Any] = {
    "counterparts": {"drawn": {"images": 1, "steps": 2, "resolution": None}},
    "captioning": {"vision_language_model": None, "clip": None},
    "content_break": BREAK,
    "style_break": BREAK,
    "make": BREAK | {"rehearsal": {"images": 2, "steps": 2}},
    "evaluation": {"samples": 1, "steps": 2, "clip": None},
    "generate": {"adapter": "models:/b4m-make-bottle-dusk@trial", "images_per_prompt": 1, "steps": 2},
    "content": {"path": "data/01_raw/own/bottle", "noun": "bottle"},
    "style": {"path": "data/01_raw/own/dusk"},
}
"""What a rehearsal changes in the environment: less of everything that repeats, and no further models of the Hub."""


@dataclass(frozen=True)
class Stage:
    """One command's wall-clock seconds and the most memory that its process held, in GiB."""

    name: str
    seconds: float
    peak_gib: float


def photographs(folder: Path, number: int, hue: tuple[int, int, int]) -> None:
    """Noisy pictures of one shape before a graded ground, 768 x 640 pixels, that nobody has the rights to but you."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    for index in range(3):
        ground = np.linspace(60, 200, 768)[None, :, None] + rng.normal(0, 12, (640, 768, 3))
        picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
        left, top = (int(value) for value in rng.integers(120, 260, 2))
        ImageDraw.Draw(picture).rounded_rectangle((left, top, left + 220, top + 330), 60, fill=hue)
        picture.filter(ImageFilter.GaussianBlur(1.5)).save(folder / f"{index}.jpg", quality=92)


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries; `over` wins."""
    both = {key: merged(under[key], over[key]) for key in under.keys() & over.keys() if isinstance(over[key], dict)}
    return under | over | {key: value for key, value in both.items() if isinstance(under[key], dict)}


def make_project(folder: Path, env: str, base_model: dict[str, Any], more: dict[str, Any]) -> Path:
    """A project with this code and configuration, two folders of photographs, and the environment set to `base_model`."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("conf", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    file = folder / "conf" / env / "parameters.yml"
    parameters = merged(merged(yaml.safe_load(file.read_text(encoding="utf-8")), SHORT), more)
    parameters["base_model"] |= {"revision": None, "variant": None, "vae": None} | base_model
    file.write_text(yaml.safe_dump(parameters, sort_keys=False), encoding="utf-8")
    photographs(folder / "data/01_raw/own/bottle", 0, (40, 110, 60))
    photographs(folder / "data/01_raw/own/dusk", 1, (190, 90, 140))
    return folder


def run_stage(project: Path, env: str, name: str) -> Stage:
    """Run one command in a process of its own. Raises RuntimeError with the end of its log if it fails."""
    command = [sys.executable, "-m", "kedro", *COMMANDS[name], f"--env={env}"]
    log = project / f"{name}.log"
    start = time.monotonic()
    with open(log, "wb") as file:
        paths = {"PYTHONPATH": str(project / "src"), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        child = subprocess.Popen(command, cwd=project, stdout=file, stderr=file, env=os.environ | paths)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{name} failed with exit code {child.returncode}:\n{said}")
    return Stage(name, time.monotonic() - start, usage.ru_maxrss / 2**20)


def table(stages: list[Stage]) -> str:
    """Markdown."""
    rows = [f"| {stage.name} | {stage.seconds:.0f} | {stage.peak_gib:.1f} |" for stage in stages]
    return "\n".join(["| stage | seconds | peak memory GiB |", "|---|---|---|", *rows])


def main() -> None:
    """Rehearse one model and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--folder", type=Path, required=True, help="where models and projects are kept")
    parser.add_argument("--resolution", type=int, default=512)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = arguments.folder.resolve() / arguments.name
    subprocess.run([sys.executable, "-m", "tools.full_size", arguments.name, str(model)], cwd=ROOT, check=True)
    own = {"path": str(model), "resolution": arguments.resolution}
    project = make_project(arguments.folder.resolve() / f"project-{arguments.name}", arguments.name, own, {})
    stages = []
    for name in COMMANDS:
        stages.append(run_stage(project, arguments.name, name))
        logger.info("%s: %.0f s, %.1f GiB", name, stages[-1].seconds, stages[-1].peak_gib)
    logger.info("Done:\n%s", table(stages))


if __name__ == "__main__":
    main()
