"""Requests per second and latencies of a served adapter, asked by several clients at once.

mlflow models serve -m models:/b4m-make-penguin-knit@candidate --env-manager local --port 5001
python benchmarks/serving.py --port 5001 --clients 4 --requests 40
"""

import argparse
import json
import os
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def ask(url: str, prompt: str, params: dict, timeout: float) -> float:
    """One picture; returns the seconds that it took. Raises what urllib raises, ValueError for an answer without a picture."""
    body = json.dumps({"inputs": {"prompt": [prompt]}, "params": params}).encode()
    begun = time.perf_counter()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        if len(json.load(answer)["predictions"]) != 1:
            raise ValueError("the server's answer has no picture")
    return time.perf_counter() - begun


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5001)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--requests", type=int, default=40, help="of all clients together")
    parser.add_argument("--prompt", default="a grelk emoji in w@z style")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--swap", action="store_true", help="another style_scale with every request")
    parser.add_argument("--timeout", type=float, default=120.0)
    given = parser.parse_args(arguments)
    url = f"http://127.0.0.1:{given.port}/invocations"
    wanted = [
        {"seed": index, "num_inference_steps": given.steps} | ({"style_scale": 0.5 + index % 2 / 2} if given.swap else {})
        for index in range(given.requests)
    ]
    ask(url, given.prompt, wanted[0], given.timeout)  # the first one warms up
    lines = ["| clients | requests/s | p50 s | p95 s |", "|---|---|---|---|"]
    for clients in given.clients:
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = list(pool.map(lambda params: ask(url, given.prompt, params, given.timeout), wanted))
        rate = len(seconds) / (time.perf_counter() - begun)
        p50, p95 = np.percentile(seconds, [50, 95])
        lines.append(f"| {clients} | {rate:.2f} | {p50:.2f} | {p95:.2f} |")
    about = f"{given.requests} requests each, a picture a request, {given.steps} steps, {os.cpu_count()} cores."
    sys.stdout.write("\n".join([*lines, "", about]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
