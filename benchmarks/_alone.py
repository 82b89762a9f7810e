"""One way in a process of its own: its time and its peak memory.

python -m benchmarks._alone '{"settings": {...}, "way": "ours", "steps": 3}'
"""

import dataclasses
import json
import subprocess
import sys
import time

from benchmarks._hardware import synchronize
from benchmarks._models import ROOT, Settings

from b4m_pipeline.common.memory import peak_gib, reset_peak


def measure_alone(settings: Settings, way: str, steps: int, warm_up: int = 1) -> dict:
    """What `_measure` returns, from a fresh process: nothing that was there before counts. Raises RuntimeError with the
    process's last line if it fails, as it does where memory is short."""
    task = json.dumps({"settings": dataclasses.asdict(settings), "way": way, "steps": steps, "warm_up": warm_up})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._alone", task], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended by signal {-done.returncode}"]
        raise RuntimeError(f"{way} could not be measured alone: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(settings: Settings, way: str, steps: int, warm_up: int) -> dict:
    """seconds a step, pictures a step, peak_gib (see `memory.peak_gib`) and, on a CPU, imports_gib: what was held before the
    model was loaded."""
    from benchmarks._ways import WAYS

    before = peak_gib(settings.device)
    built = WAYS[way](settings)
    reset_peak(settings.device)
    for _ in range(warm_up):
        built.step()
    synchronize(settings.device)
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        built.step()
        synchronize(settings.device)
        seconds.append(time.perf_counter() - begun)
    result = {"seconds": seconds, "pictures": built.pictures, "peak_gib": peak_gib(settings.device)}
    return result | ({"imports_gib": before} if settings.device == "cpu" else {})


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    fields = task["settings"] | {"targets": tuple(task["settings"]["targets"])}
    sys.stdout.write(json.dumps(_measure(Settings(**fields), task["way"], task["steps"], task["warm_up"])) + "\n")
