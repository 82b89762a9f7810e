"""Wall time and peak memory of the default `kedro run --pipelines=break_make`, stage by stage; or how much faster it is with
both breaks side by side than with one after the other.

python -m benchmarks.break_make [--pairs N] [further arguments of kedro run]
"""

import argparse
import os
import re
import resource  # noqa: TID251 - this is measured on Linux
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from benchmarks._nodes import with_nodes
from benchmarks._timing import paired_ratio, table

ROOT = Path(__file__).parents[1]
IN_ORDER = "--runner=SequentialRunner"
_DONE = re.compile(r"^(\d\d:\d\d:\d\d) INFO\s+Completed node: (\S+)")


def run(arguments: list[str]) -> tuple[float, dict[str, float]]:
    """Seconds of a run and of its nodes, from the end of one to that of the next. Ends this program if the run fails."""
    command = [sys.executable, "-m", "kedro", "run", "--pipelines=break_make", "--params=reuse=false", *arguments]
    begun, clock = time.monotonic(), datetime.now()
    with tempfile.TemporaryDirectory() as folder:
        own = os.environ | {"KEDRO_LOGGING_CONFIG": str(with_nodes(ROOT, Path(folder)))}
        process = subprocess.run(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - begun
    if process.returncode:
        sys.stderr.write(process.stderr[-4000:])
        sys.exit(process.returncode)
    return seconds, nodes(process.stderr, clock)


def nodes(log: str, begun: datetime) -> dict[str, float]:
    """Seconds of each node in a log whose lines begin with the time of day."""
    found, before = {}, begun
    for line in log.replace("\r", "\n").splitlines():
        if done := _DONE.search(line):
            now = datetime.combine(begun.date(), datetime.strptime(done[1], "%H:%M:%S").time())
            found[done[2]] = (now - before).total_seconds()
            before = now
    return found


def compare(pairs: int, arguments: list[str], measure: Callable[[list[str]], tuple[float, dict[str, float]]] = run) -> str:
    """Runs in turn, as by default and in order; their times and the ratio of each pair."""
    whole: dict[str, list[float]] = {"side by side": [], "in order": []}
    breaks: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(pairs):
        for name, own in (("side by side", []), ("in order", [IN_ORDER])):
            seconds, done = measure([*arguments, *own])
            whole[name].append(seconds)
            breaks[name].append(sum(took for node, took in done.items() if "_break." in node))
    rows = [
        [what, *(" ".join(f"{value:.0f}" for value in times[name]) for name in whole), str(paired_ratio(*_slower_first(times)))]
        for what, times in (("both breaks", breaks), ("whole run", whole))
    ]
    return table(["seconds", *whole, "in order / side by side"], rows)


def _slower_first(times: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    return times["in order"], times["side by side"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=0, help="runs of each kind, in turn; 0: one run, stage by stage")
    own, arguments = parser.parse_known_args()
    if own.pairs:
        sys.stdout.write(compare(own.pairs, arguments) + f"\n\n{os.cpu_count()} cores.\n")
        return
    seconds, done = run(arguments)
    gibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    lines = table(["node", "seconds"], [[name, f"{took:.0f}"] for name, took in done.items()])
    sys.stdout.write(
        f"{lines}\n\n{seconds:.0f} s in all, at most {gibibytes:.2f} GiB of memory in a process, {os.cpu_count()} cores.\n"
    )


if __name__ == "__main__":
    main()
