"""Wall time and peak memory of the default `kedro run --pipelines=break_make`, stage by stage.

python benchmarks/break_make.py [further arguments of kedro run]
"""

import os
import re
import resource  # noqa: TID251 - this is measured on Linux
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from _nodes import with_nodes

ROOT = Path(__file__).parents[1]
_DONE = re.compile(r"^(\d\d:\d\d:\d\d) INFO\s+Completed node: (\S+)")


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "kedro", "run", "--pipelines=break_make", "--params=reuse=false", *arguments]
    begun, clock = time.monotonic(), datetime.now()
    with tempfile.TemporaryDirectory() as folder:
        own = os.environ | {"KEDRO_LOGGING_CONFIG": str(with_nodes(ROOT, Path(folder)))}
        process = subprocess.run(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - begun
    if process.returncode:
        sys.stderr.write(process.stderr[-4000:])
        return process.returncode
    lines = ["| node | seconds |", "|---|---|"]
    before = clock
    for line in process.stderr.replace("\r", "\n").splitlines():
        if done := _DONE.search(line):
            now = datetime.combine(clock.date(), datetime.strptime(done[1], "%H:%M:%S").time())
            lines.append(f"| {done[2]} | {(now - before).total_seconds():.0f} |")
            before = now
    gibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    lines += ["", f"{seconds:.0f} s in all, at most {gibibytes:.2f} GiB of memory, {os.cpu_count()} cores."]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
