"""One training step of a break: ours, the released code's way and a plain LoRA, side by side.

    python -m benchmarks.step                                      # the embedded base
    python -m benchmarks.step --size sdxl --json sdxl.json         # full size, random weights, for a GPU

Nothing is downloaded. What is measured and how: docs/performance.md.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from benchmarks._alone import measure_alone
from benchmarks._breakdown import count_flops, time_by_kind
from benchmarks._hardware import describe, matmul_peak
from benchmarks._models import FULL_SIZES, Settings
from benchmarks._timing import Estimate, paired_ratio, paired_share, table, time_rounds
from benchmarks._ways import WAYS, Make, Ours, PlainFactors

from b4m_pipeline.common.devices import pick_device, resolve_precision

ATTENTION = "to_q,to_k,to_v,to_out.0"
_DEFAULTS = {
    "mini": {"resolution": 128, "batch": 8, "rank": 128, "targets": "attn2.to_k,attn2.to_v,add_embedding.linear_2"},
    "sdxl": {"resolution": 512, "batch": 1, "rank": 64, "targets": ATTENTION},
    "sd15": {"resolution": 512, "batch": 2, "rank": 64, "targets": ATTENTION},
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Arguments that make up Settings."""
    parser.add_argument("--size", choices=sorted(_DEFAULTS), default="mini")
    parser.add_argument("--resolution", type=int, help="pixels a side")
    parser.add_argument("--batch", type=int, help="pictures of the concept in a step")
    parser.add_argument("--counterparts", type=int, default=3, help="batches of counterparts in a step (released: 3)")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--targets", help="ends of module names, with commas; left out: those of the size's environment")
    parser.add_argument("--halves", choices=["orthogonal", "free"], default="orthogonal")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="left out: what training takes on this machine")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in all ways")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--force", action="store_true", help="full size on a CPU, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Settings from the command line. Raises ValueError for a full-size model on a CPU, unless it is forced."""
    device = pick_device(arguments.device)
    if arguments.size in FULL_SIZES and device == "cpu" and not arguments.force:
        raise ValueError(f"--size {arguments.size} is full size and needs a GPU, this machine has none: --force does it anyway")
    chosen = {name: getattr(arguments, name) for name in ("resolution", "batch", "rank", "targets")}
    fields = _DEFAULTS[arguments.size] | {name: value for name, value in chosen.items() if value is not None}
    precision = resolve_precision("auto", device)
    dtype = arguments.dtype or {"no": "float32", "bf16": "bfloat16"}[precision]
    given = {name: getattr(arguments, name) for name in ("size", "counterparts", "halves", "checkpointing")}
    return Settings(**given, **fields | {"targets": tuple(fields["targets"].split(","))}, dtype=dtype, device=device)


def describe_run(settings: Settings) -> str:
    """Hardware and settings, a line each."""
    machine = describe(settings.device, settings.torch_dtype)
    asked = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("dtype", "device", "seed")}
    asked["targets"] = " ".join(settings.targets)
    return "\n".join("; ".join(f"{key}: {value}" for key, value in part.items()) for part in (machine, asked)) + "\n"


def write_json(file: Path | None, figures: dict) -> None:
    if file:
        file.write_text(json.dumps(figures, indent=1, default=dataclasses.asdict) + "\n", encoding="utf-8")


def compare_ways(settings: Settings, names: list[str], rounds: int, steps: int, warm_up: int) -> tuple[str, dict]:
    """Table of ours and other ways: memory first, each in its own process, then time in this one."""
    names = ["ours", *(name for name in names if name != "ours")]
    memory = {name: measure_alone(settings, name, steps=2) for name in names}
    ways = {name: WAYS[name](settings) for name in names}
    seconds = time_rounds({name: way.step for name, way in ways.items()}, settings.device, rounds, steps, warm_up)
    rows, figures = [], {}
    for name, way in ways.items():
        time, peak = median(seconds[name]), memory[name]["peak_gib"]
        ratio = paired_ratio(seconds[name], seconds["ours"])
        shown = "1" if name == "ours" else str(ratio)
        row = [f"{1000 * time:.0f}", f"{1 / time:.2f}", str(way.pictures), f"{way.pictures / time:.1f}", shown]
        rows.append([name, *row, f"{peak:.2f}", f"{peak / memory['ours']['peak_gib']:.2f}"])
        figures[name] = memory[name] | {"seconds": seconds[name], "times_ours": ratio}  # in turn with the others, not alone
    head = ["way", "ms a step", "steps/s", "pictures a step", "pictures/s", "time / ours", "peak memory GiB", "memory / ours"]
    return table(head, rows), figures


def measure_parts(settings: Settings, rounds: int, steps: int, warm_up: int) -> tuple[str, dict]:
    """Table of what the method's parts take of a step, each from the same step with and without it."""
    parts: dict[str, tuple[Estimate, float, float]] = {}

    def compare(name: str, whole: Callable[[], object], without: Callable[[], object]) -> None:
        taken = time_rounds({"whole": whole, "without": without}, settings.device, rounds, steps, warm_up)
        share = paired_share(taken["whole"], taken["without"])
        parts[name] = (share, median(taken["whole"]), median(taken["without"]))

    projected = Ours(settings, one_pass=False)  # as the plain one, whose gradients nothing keeps apart in one pass
    compare("partly learnable projection, against a plain LoRA in our step", projected.step, PlainFactors(settings).step)
    del projected
    ours = Ours(settings)
    compare("preservation on 96 prompts", Ours(settings, preserving=True).step, ours.step)
    del ours
    make = Make(settings)
    compare("Riemannian preconditioner, in make", make.step, make.step_by_adamw)
    rows = [[name, s.percent(), f"{1000 * a:.0f}", f"{1000 * b:.0f}"] for name, (s, a, b) in parts.items()]
    figures = {name: {"share": s, "seconds": a, "seconds_without": b} for name, (s, a, b) in parts.items()}
    return table(["part", "share of the step", "ms with", "ms without"], rows), figures


def break_down(settings: Settings, seconds: float, steps: int) -> tuple[str, dict]:
    """Table of our step's time by kind of operator, and its FLOP/s beside a large matrix product's."""
    ours = Ours(settings)
    ours.step()
    shares = time_by_kind(ours.step, settings.device, steps)
    flops = count_flops(ours.step)
    peak = matmul_peak(settings.device, settings.torch_dtype)
    lines = [
        table(["kind of operator", "share of time"], [[kind, f"{share:.1%}"] for kind, share in shares.items()]),
        f"\n{flops / 1e9:.1f} GFLOP a step, {flops / seconds / 1e9:.1f} GFLOP/s; a large matrix product does {peak / 1e9:.1f} "
        f"GFLOP/s here: {flops / seconds / peak:.0%} of what the matrix units could do.",
    ]
    return "\n".join(lines), {"shares": shares, "flops": flops, "flops_per_second": flops / seconds, "matmul_peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    add_settings(parser)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="beside ours; each has its own UNet")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="steps in a row of each way in a round")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that are not kept")
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments)
    except ValueError as error:
        sys.exit(str(error))
    torch.manual_seed(settings.seed)
    timing = (arguments.rounds, arguments.steps, arguments.warm_up)
    sys.stdout.write(describe_run(settings) + "\n")
    sys.stdout.flush()
    ways, compared = compare_ways(settings, arguments.ways, *timing)
    sys.stdout.write(ways + "\n\n")
    parts, parted = measure_parts(settings, *timing)
    sys.stdout.write(parts + "\n\n")
    kinds, broken_down = break_down(settings, median(compared["ours"]["seconds"]), arguments.steps)
    sys.stdout.write(kinds + "\n")
    machine = describe(settings.device, settings.torch_dtype)
    figures = {"ways": compared, "parts": parted, "breakdown": broken_down}
    write_json(arguments.json, {"machine": machine, "settings": settings} | figures)


if __name__ == "__main__":
    main()
