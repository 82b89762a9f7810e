"""What training takes on a GPU, in ten minutes: ours, the released code's way and a plain LoRA at SDXL's size, then a step of
SDXL's and FLUX.2 klein's environments with their settings for 24, 12 and 8 GB, beside what `kedro memory` computes.

    python -m benchmarks.gpu OUTPUT                                # full size, random weights, nothing is downloaded
    python -m benchmarks.gpu OUTPUT --sdxl FOLDER --flux2 FOLDER   # models in diffusers' format instead

OUTPUT gets tables.md and figures.json after every part, so that what ends early keeps what it has. It ends by its own clock:
parts for which no time is left are named. Neither Kedro nor MLflow is needed.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from benchmarks._hardware import describe, synchronize
from benchmarks._models import ROOT, Settings
from benchmarks._timing import paired_ratio, table, time_rounds
from benchmarks._ways import WAYS, break_objectives
from benchmarks.step import ATTENTION

from b4m_pipeline.common.devices import DTYPES, pick_device, resolve_precision
from b4m_pipeline.common.memory import peak_gib, reset_peak
from b4m_pipeline.common.presets import with_preset
from b4m_pipeline.diffusion.families import QuantizationError, load_family
from b4m_pipeline.diffusion.families.base import Family
from b4m_pipeline.diffusion.families.prompts import MASK
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.layers import inject, route_gradients
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training import footprint
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.setup import make_frame
from b4m_pipeline.training.trainer import Trainer
from tools import full_size

WAYS_COMPARED = ("ours", "released", "plain LoRA")
ENVIRONMENTS = ("sdxl", "flux2")
SIZES = (24, 12, 8)
"""GB."""
ROUNDS, STEPS = 8, 5


@dataclass
class Clock:
    """So many seconds from now. At the end of them the process ends, whatever it does."""

    seconds: float
    begun: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.begun + self.seconds - time.monotonic()

    def end_by_force(self) -> None:
        timer = threading.Timer(max(0.0, self.left()), lambda: os._exit(3))
        timer.daemon = True
        timer.start()


@dataclass
class Report:
    """What has been measured so far, in a folder."""

    folder: Path
    device: str
    tables: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, head: list[str], rows: list[list[str]], figures: Any) -> None:
        self.tables.append(f"## {name}\n\n{table(head, rows)}\n")
        self.figures[name] = figures
        self._write()

    def skip(self, name: str, why: str) -> None:
        self.tables.append(f"## {name}\n\nNot measured: {why}.\n")
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        machine = describe(self.device, DTYPES[resolve_precision("auto", self.device)])
        about = "; ".join(f"{key}: {value}" for key, value in machine.items())
        text = "\n".join([f"{time.strftime('%d %B %Y')}. {about}\n", *self.tables])
        (self.folder / "tables.md").write_text(text, encoding="utf-8")
        given = json.dumps({"machine": machine} | self.figures, indent=1)
        (self.folder / "figures.json").write_text(given + "\n", encoding="utf-8")


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _peak_of(make: Callable[[], Any], device: str) -> float:
    """GiB at the peak of two steps, with nothing else on the GPU."""
    _free(device)
    reset_peak(device)
    way = make()
    way.step()
    way.step()
    synchronize(device)
    return peak_gib(device)


def compare_ways(settings: Settings, clock: Clock, report: Report) -> None:
    """Time in turns within one process, memory one after another."""
    peaks = {name: _peak_of(partial(WAYS[name], settings), settings.device) for name in WAYS_COMPARED}
    _free(settings.device)
    ways = {name: WAYS[name](settings) for name in WAYS_COMPARED}
    once = sum(times[0] for times in _time(ways, settings.device, 1, 1).values())
    rounds = max(2, min(ROUNDS, int(0.25 * clock.left() / (once * STEPS))))
    seconds = _time(ways, settings.device, rounds, STEPS)
    rows, figures = [], {}
    for name, way in ways.items():
        ratio = paired_ratio(seconds[name], seconds["ours"])
        shown = "1" if name == "ours" else str(ratio)
        rows.append([name, f"{1 / median(seconds[name]):.2f}", str(way.pictures), shown, f"{peaks[name]:.2f}"])
        figures[name] = {"seconds": seconds[name], "peak_gib": peaks[name], "pictures": way.pictures}
    head = ["way", "steps/s", "pictures a step", "time / ours", "peak memory GiB"]
    report.add(f"A step at SDXL's size, {settings.resolution} pixels", head, rows, figures)


def _time(ways: dict[str, Any], device: str, rounds: int, steps: int) -> dict[str, list[float]]:
    return time_rounds({name: way.step for name, way in ways.items()}, device, rounds, steps, warm_up=1)


def settings_of(environment: str, size: int, base: dict[str, Any]) -> tuple[BaseModelParams, FrameParams, BreakParams]:
    """The environment's, for a GPU of so many GB, with this base model."""
    read = [yaml.safe_load((ROOT / f"conf/{name}").read_text(encoding="utf-8")) for name in _files(environment)]
    values = {key: part for each in read for key, part in each.items()}
    for key in ("base_model", "frame", "content_break"):  # an environment names only what it changes
        values[key] = {name: value for each in read for name, value in each.get(key, {}).items()}
    chosen = with_preset(values | {"base_model": values["base_model"] | base}, {}, size)
    frame = {key: value for key, value in chosen["frame"].items() if key != "words"} | {"basis": "none"}
    training = {key: value for key, value in chosen["content_break"].items() if key != "samples"}
    return BaseModelParams(**chosen["base_model"]), FrameParams(**frame), BreakParams(**training)


def _files(environment: str) -> list[str]:
    return ["base/parameters.yml", "base/parameters_content_break.yml", f"{environment}/parameters.yml"]


def write_denoiser(environment: str, folder: Path, device: str) -> Path:
    """The environment's base model at full size: configurations, and a denoiser of random weights, in bfloat16."""
    full_size.write_configurations(environment, folder)
    family = load_family(BaseModelParams(path=str(folder)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            denoiser = family.denoiser_class.from_config(family.denoiser_config())
    finally:
        torch.set_default_dtype(before)
    denoiser.save_pretrained(folder / family.denoiser_name)
    return folder


def blank_training_set(family: Family, pictures: int) -> dict[str, torch.Tensor]:
    """Latents and prompts of so many pictures, drawn by lot."""
    generator, side = torch.Generator().manual_seed(0), family.params.resolution // family.vae_factor()
    shape = (pictures, family.latent_channels(), side, side)
    latents = {"latents_mean": torch.randn(shape, generator=generator), "latents_std": torch.full(shape, 0.1)}
    shapes = family.prompt_shapes()
    prompts = {name: torch.randn(pictures, *own, generator=generator) for name, own in shapes.items()}
    return latents | prompts | ({MASK: torch.ones(pictures, *shapes[MASK])} if MASK in shapes else {})


class BreakStep:
    """A step of a content break, as the environment has it."""

    def __init__(self, base: BaseModelParams, frame: FrameParams, params: BreakParams, device: str):
        family = load_family(base)
        denoiser = family.load_denoiser(device, DTYPES[resolve_precision(params.precision, device)])
        layers = inject(denoiser, make_frame(base, frame), frame.halves)
        if params.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        denoiser.to(device).eval()
        self.pictures = params.batch_size + params.counterpart_batch_size
        loss = DiffusionLoss(family, denoiser, blank_training_set(family, self.pictures))
        sides = [layer.a for layer in layers.values()], [layer.b for layer in layers.values()]
        objectives = break_objectives(params.batch_size, params.counterpart_batch_size, *sides)
        joint = partial(loss.joint_loss, before=partial(route_gradients, layers, ("lora_A", "lora_B")))
        self.trainer = Trainer(loss, objectives, params, 0, "", device, joint if params.one_pass else None)

    def step(self) -> None:
        self.trainer.train_step(None)


def measure_environment(environment: str, folder: Path, device: str, clock: Clock, report: Report) -> None:
    """A row for each GB: steps a second and memory at the peak, beside the computed memory."""
    rows, figures = [], {}
    for size in SIZES:
        base = {"path": str(folder), "revision": None, "variant": None, "vae": None}
        given = settings_of(environment, size, base | ({"resolution": 32} if device == "cpu" else {}))
        _free(device)
        reset_peak(device)
        try:
            own = BreakStep(*given, device)
        except QuantizationError as error:
            rows.append([f"{size} GB", "", "", "", str(error)])
            continue
        rounds = max(2, min(ROUNDS, int(0.1 * clock.left())))
        seconds = _time({"": own}, device, rounds, 1)[""]
        peak = peak_gib(device)
        del own
        computed = _computed(*given, device) if clock.left() > 60 else None
        shown = "" if computed is None else f"{computed:.2f}"
        rows.append([f"{size} GB", f"{1 / median(seconds):.2f}", f"{peak:.2f}", shown, given[0].quantization or ""])
        figures[size] = {"seconds": seconds, "peak_gib": peak, "computed_gib": computed}
    head = ["settings for", "steps/s", "peak memory GiB", "computed GiB", "quantisation"]
    report.add(f"A step of a break with --env={environment}", head, rows, figures)


def _computed(base: BaseModelParams, frame: FrameParams, params: BreakParams, device: str) -> float:
    own = footprint.Settings(base, frame, {"content_break": params}, {}, device)
    return footprint.training(own, "content_break").total / footprint.GIB


def run(output: Path, folders: dict[str, Path], seconds: float, device: str) -> Report:
    """All parts, as far as time allows. folders: base models by environment, in the place of full-size ones."""
    clock, report = Clock(seconds), Report(output, device)
    clock.end_by_force()
    own = {"size": str(folders["sdxl"]), "resolution": 32, "rank": 4} if "sdxl" in folders else {}
    full = {"size": "sdxl", "resolution": 512, "rank": 64}
    dtype = {"no": "float32", "bf16": "bfloat16"}[resolve_precision("auto", device)]
    about = {"batch": 1, "counterparts": 3, "targets": tuple(ATTENTION.split(",")), "halves": "orthogonal"}
    compare_ways(Settings(**full | own, **about, dtype=dtype, device=device), clock, report)
    with tempfile.TemporaryDirectory() as scratch:
        for environment in ENVIRONMENTS:
            if clock.left() < 0.2 * seconds:
                report.skip(f"A step of a break with --env={environment}", "no time was left")
                continue
            folder = folders.get(environment) or write_denoiser(environment, Path(scratch) / environment, device)
            measure_environment(environment, folder, device, clock, report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder of the tables")
    parser.add_argument("--seconds", type=float, default=600)
    for environment in ENVIRONMENTS:
        parser.add_argument(f"--{environment}", type=Path, metavar="FOLDER", help="a base model instead of the full-size one")
    arguments = parser.parse_args()
    folders = {name: getattr(arguments, name) for name in ENVIRONMENTS if getattr(arguments, name)}
    device = pick_device()
    if device == "cpu" and len(folders) < len(ENVIRONMENTS):
        sys.exit("This machine has no GPU: name small models with --sdxl and --flux2 to try the script")
    report = run(arguments.output, folders, arguments.seconds, device)
    sys.stdout.write("\n".join(report.tables))


if __name__ == "__main__":
    main()
