"""How a step of a break grows with rank, resolution, batch and counterparts: one of them is changed at a time.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --size sdxl --way "plain LoRA" --rank 16 --resolution 512

Each setting is measured in a process of its own, one after another. Nothing is downloaded.
"""

import argparse
import dataclasses
import sys
from statistics import median

from benchmarks._alone import measure_alone
from benchmarks._hardware import describe
from benchmarks._models import Settings
from benchmarks._timing import table
from benchmarks._ways import WAYS
from benchmarks.step import add_settings, describe_run, read_settings, write_json

FACTORS = {"rank": (0.125, 0.25, 0.5, 1), "resolution": (0.5, 1, 1.5, 2), "batch": (0.5, 1, 2, 4)}
COUNTERPARTS = (0, 1, 2, 3)


def sweep(settings: Settings) -> dict[str, list[Settings]]:
    """Settings to measure for each quantity that is changed; resolutions stay multiples of 32, ranks even, batches whole."""
    multiple = {"rank": 2, "resolution": 32, "batch": 1}
    changed = {}
    for name, factors in FACTORS.items():
        unit, base = multiple[name], getattr(settings, name)
        values = sorted({max(unit, round(base * factor / unit) * unit) for factor in factors})
        changed[name] = [dataclasses.replace(settings, **{name: value}) for value in values]
    changed["counterparts"] = [dataclasses.replace(settings, counterparts=value) for value in COUNTERPARTS]
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    add_settings(parser)
    parser.add_argument("--way", choices=sorted(WAYS), default="ours")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    try:
        settings = read_settings(arguments)
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{describe_run(settings)}way: {arguments.way}\n\n")
    measured: dict[Settings, dict] = {}
    rows = []
    for name, variants in sweep(settings).items():
        for variant in variants:
            if variant not in measured:
                try:
                    measured[variant] = measure_alone(variant, arguments.way, arguments.steps)
                except RuntimeError as error:  # memory is short, as a rule: the others can still be measured
                    sys.stderr.write(f"{error}\n")
                    rows.append([name, str(getattr(variant, name)), "failed", str(variant.pictures), "", ""])
                    continue
            figures = measured[variant]
            time, pictures = median(figures["seconds"]), figures["pictures"]
            own = [f"{1000 * time:.0f}", str(pictures), f"{pictures / time:.1f}", f"{figures['peak_gib']:.2f}"]
            rows.append([name, str(getattr(variant, name)), *own])
            sys.stderr.write(f"{name} {getattr(variant, name)}: {own[0]} ms\n")
    head = ["changed", "to", "ms a step", "pictures a step", "pictures/s", "peak memory GiB"]
    sys.stdout.write(table(head, rows) + "\n")
    figures = [{"settings": variant} | own for variant, own in measured.items()]
    write_json(arguments.json, {"machine": describe(settings.device, settings.torch_dtype), "measured": figures})


if __name__ == "__main__":
    main()
