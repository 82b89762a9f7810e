"""A served adapter under load: clients that ask for pictures of mixed sizes all the time, and one that means harm.

kedro serve models:/b4m-make-penguin-knit@candidate &
python benchmarks/serving.py --clients 20 --seconds 180 --pid $!

A good client that is refused (429, 503, 504) asks again after the time that the answer names; its seconds count from when it
first asked. Its request is lost if anything else happens: no answer, another status, a picture too few. Meanwhile /ping is
asked, and the server's memory read. Ends with exit code 1 if a request was lost, /ping failed, the hostile client was answered
wrongly, or memory grew.
"""

import argparse
import base64
import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil

MIX = ((1, 1.0), (1, 1.0), (1, 1.0), (2, 0.5), (4, 1.0), (1, 2.0))
"""What good clients ask for: prompts, and the side as a share of the trained one."""
REFUSALS = (429, 503, 504)
_PATIENCE = 120.0  # seconds without an answer after which a request is lost


@dataclass
class Tally:
    """What became of some client's requests. seconds: of the answered ones; statuses: of all answers, None where there was
    none; wrong: answers that should not be, a line each."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        answered, refused = len(self.seconds), sum(self.statuses[status] for status in REFUSALS)
        times = [f"{value:.2f}" for value in np.percentile(self.seconds, [50, 95, 99])] if self.seconds else ["", "", ""]
        cells = [name, *map(str, (sum(self.statuses.values()), answered, refused, len(self.wrong))), *times]
        return f"| {' | '.join(cells)} |"


HEADER = "| | requests | answered | refused | lost or wrong | p50 s | p95 s | p99 s |\n|---|---|---|---|---|---|---|---|"


def ask(port: int, body: bytes, path: str = "/invocations", **headers: str) -> tuple[int | None, dict[str, str], bytes]:
    """Status, headers and body of an answer; None, {} and the reason where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        told = {"Content-Type": "application/json"} | headers
        connection.request("POST" if body else "GET", path, body or None, told)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return None, {}, repr(error).encode()
    finally:
        connection.close()


def asked(prompts: list, **params) -> bytes:
    return json.dumps({"inputs": {"prompt": prompts}, "params": params}).encode()


def picture_request(given: argparse.Namespace, prompts: int, share: float, seed: int) -> tuple[int, bytes]:
    """Pixels a side, and the body that asks for such pictures."""
    side = max(8, int(given.side * share) // 8 * 8)
    return side, asked([given.prompt] * prompts, seed=seed, num_inference_steps=given.steps, height=side, width=side)


def good_client(port: int, number: int, given: argparse.Namespace, until: Callable[[], bool], tally: Tally) -> None:
    """Ask for pictures until it is over; come again as told when refused."""
    draw = random.Random(number)
    for seed in itertools.count(1000 * number):
        prompts, share = draw.choice(MIX)
        side, body = picture_request(given, prompts, share, seed)
        begun = time.perf_counter()
        while not until():
            status, headers, said = ask(port, body)
            tally.statuses[status] += 1
            if status == 200:
                pictures = [base64.b64decode(text) for text in json.loads(said)["predictions"]]
                sizes = {struct.unpack(">II", picture[16:24]) for picture in pictures}
                if len(pictures) != prompts or sizes != {(side, side)}:
                    tally.wrong.append(f"{len(pictures)} pictures of {sizes} for {prompts} prompts of {side} pixels")
                tally.seconds.append(time.perf_counter() - begun)
                break
            wait = headers.get("retry-after", "")
            if status not in REFUSALS or not wait.isdigit():
                tally.wrong.append(f"{status}: {said[:200].decode(errors='replace')}")
                _sleep(0.5, until)
                break
            _sleep(int(wait) * draw.uniform(1.0, 1.5), until)
        if until():
            return


def attacks(given: argparse.Namespace) -> Iterator[tuple[bytes, dict[str, str], tuple[int | None, ...]]]:
    """What the hostile client sends, over and over: bodies, headers, and the statuses that are right."""
    largest = 1000 // (given.steps + 5)
    while True:
        yield asked([given.prompt] * min(32, largest), num_inference_steps=given.steps), {}, (200, *REFUSALS)
        yield asked([given.prompt] * 32, height=4 * given.side, width=4 * given.side, num_inference_steps=1), {}, (400,)
        yield asked([None, 5, {"a": "b"}]), {}, (400,)
        yield b"[" * 100_000, {}, (400,)
        yield asked(["x" * 900_000]), {}, (413, None)
        yield b"\x80\x04c__builtin__\neval\n", {"Content-Type": "application/x-pickle"}, (415,)
        yield asked([given.prompt], seed=-1, sed=2), {}, (400,)


def hostile_client(port: int, given: argparse.Namespace, until: Callable[[], bool], tally: Tally) -> None:
    """Send what should be refused, what is as large as may be, and hang up on some."""
    for body, headers, right in attacks(given):
        if until():
            return
        status, _, said = ask(port, body, **headers)
        tally.statuses[status] += 1
        if status not in right:
            tally.wrong.append(f"{status} instead of {right}: {said[:200].decode(errors='replace')}")
        _hang_up(port, asked([given.prompt] * 8, num_inference_steps=given.steps))
        time.sleep(0.05)


def _hang_up(port: int, body: bytes) -> None:
    """Send a request and leave without reading the answer; whether it is there, the other clients see."""
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.1)


def health(port: int, until: Callable[[], bool], tally: Tally) -> None:
    """Ask /ping five times a second."""
    while not until():
        begun = time.perf_counter()
        status, _, said = ask(port, b"", "/ping")
        tally.statuses[status] += 1
        tally.seconds.append(time.perf_counter() - begun)
        if status != 200:
            tally.wrong.append(f"/ping: {status} {said[:100]!r}")
        _sleep(0.2, until)


def watch_memory(pid: int | None, until: Callable[[], bool], held: list[float]) -> None:
    """MiB that the server and its processes hold, twice a second."""
    while pid and not until():
        server = psutil.Process(pid)
        held.append(sum(process.memory_info().rss for process in [server, *server.children(recursive=True)]) / 2**20)
        _sleep(0.5, until)


def growth(held: list[float]) -> float:
    """MiB by which the last quarter's median is above the second quarter's."""
    quarter = max(1, len(held) // 4)
    return float(np.median(held[-quarter:]) - np.median(held[quarter : 2 * quarter] or held)) if held else 0.0


def _sleep(seconds: float, until: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        time.sleep(min(0.05, seconds))


def storm(given: argparse.Namespace) -> tuple[str, bool]:
    """One request of each size, then all clients at once for the given time -> a report, and whether all went well."""
    for prompts, share in dict.fromkeys(MIX):  # what each size takes for the first time is no growth of memory
        ask(given.port, picture_request(given, prompts, share, 0)[1])
    end = time.monotonic() + given.seconds
    until = lambda: time.monotonic() > end  # noqa: E731
    good, hostile, pings, held = [Tally() for _ in range(given.clients)], Tally(), Tally(), []
    tasks = [(good_client, given.port, number, given, until, tally) for number, tally in enumerate(good)]
    tasks += [(hostile_client, given.port, given, until, hostile)] * (not given.no_hostile)
    tasks += [(health, given.port, until, pings), (watch_memory, given.pid, until, held)]
    threads = [threading.Thread(target=function, args=arguments) for function, *arguments in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Tally()
    for tally in good:
        total.seconds += tally.seconds
        total.statuses += tally.statuses
        total.wrong += tally.wrong
    grown = growth(held)
    lines = [HEADER, total.row(f"{given.clients} clients"), hostile.row("1 hostile"), pings.row("/ping")]
    fewest = min(len(tally.seconds) for tally in good)
    lines += ["", f"{given.seconds:.0f} s, {given.steps} steps, sides from {given.side}, {os.cpu_count()} cores; each client "]
    lines[-1] += f"was answered {fewest} times or more."
    if held:
        lines.append(
            f"Memory {held[0]:.0f} MiB at first, at most {max(held):.0f}; {grown:+.0f} MiB from second to last quarter."
        )
    wrong = [*total.wrong, *hostile.wrong, *pings.wrong]
    lines += [f"Wrong: {line}" for line in wrong[:10]]
    return "\n".join(lines), not wrong and grown <= given.max_growth and bool(total.seconds)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5001)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--no-hostile", action="store_true", help="good clients alone")
    parser.add_argument("--prompt", default="a grelk emoji in w@z style")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=128, help="pixels that the adapter was trained at")
    parser.add_argument("--pid", type=int, help="the server's process, whose memory is watched")
    parser.add_argument("--max-growth", type=float, default=64.0, help="MiB of memory that are no growth")
    given = parser.parse_args(arguments)
    if ask(given.port, b"", "/ping")[0] != 200:
        parser.error(f"no server answers at http://127.0.0.1:{given.port}/ping: start one (see above), or give its --port")
    report, well = storm(given)
    sys.stdout.write(report + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
