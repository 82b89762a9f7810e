"""What drawing costs: images a second by batch size, the first image, and changing adapters while the base model stays loaded.

    python -m benchmarks.drawing [--base FOLDER] [--rank 16] [--adapters 1 10 100] [--device cpu]

Adapters have random weights in the layers that a default run adapts; base models of a folder or the embedded one. Three ways to
change the adapter are compared, in turns: all held (a Wardrobe with room for all), as it is (room for 16), and loaded from a
file each time. Times are the fewest seconds of several; changing is the mean over a random order of requests.
"""

import argparse
import logging
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from benchmarks._adapters import random_pair, tiny_frame
from benchmarks._hardware import describe, synchronize
from benchmarks._models import EMBEDDED_BASE

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.memory import process_peak
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import ImageRequest, draw, put_on
from b4m_pipeline.diffusion.wardrobe import MOST_ADAPTERS, Wardrobe
from b4m_pipeline.method.adapter import Adapter

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_PROMPT = "a grelk toy in w@z style"


def fewest(work: Callable[[], Any], device: str, turns: int) -> float:
    """Seconds of the fastest of several turns."""
    seconds = []
    for _ in range(turns):
        begun = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def by_batch(pipeline: Any, given: argparse.Namespace) -> list[str]:
    """Images a second and the time to the first one, by batch size."""
    lines = ["| batch size | images/s | first image s |", "|---|---|---|"]
    for size in given.batches:
        asked = [ImageRequest(_PROMPT, seed) for seed in range(size)]

        def once(asked: list[ImageRequest] = asked, size: int = size) -> None:
            list(draw(pipeline, asked, steps=given.steps, guidance_scale=2.0, batch_size=size, size=(given.side, given.side)))

        seconds = fewest(once, given.device, given.turns)
        lines.append(f"| {size} | {size / seconds:.2f} | {seconds:.2f} |")
    return lines


def reload(pipeline: Any) -> Callable[[int, Adapter], None]:
    """Each adapter is loaded anew, alone."""
    worn = []

    def change(key: int, adapter: Adapter) -> None:
        if worn != [key]:
            pipeline.unload_lora_weights()
            put_on(pipeline, adapter)
            worn[:] = [key]

    return change


def wardrobe(pipeline: Any, most: int, most_bytes: int) -> Callable[[int, Adapter], None]:
    held = Wardrobe(pipeline, most, most_bytes)
    return lambda key, adapter: held.wear(key, lambda: adapter) and None


def by_adapters(pipeline: Any, adapters: list[Adapter], given: argparse.Namespace) -> list[str]:
    """Seconds to change to the adapter of the next request, requests in a random order, and one image with it."""
    lines = [
        "| adapters | all held ms | 16 held ms | loaded each time ms | image s, all held | image s, alone |",
        "|---" * 6 + "|",
    ]
    for number in given.adapters:
        order = [random.Random(0).choices(range(number), k=given.changes), list(range(number))]
        cells = [str(number)]
        for way in (wardrobe(pipeline, number, 2**60), wardrobe(pipeline, MOST_ADAPTERS, 2**60), reload(pipeline)):
            pipeline.unload_lora_weights()
            for key in order[1][-MOST_ADAPTERS:] if way.__qualname__.startswith("reload") else order[1]:
                way(key, adapters[key])
            begun = time.perf_counter()
            for key in order[0]:
                way(key, adapters[key])
            synchronize(given.device)
            cells.append(f"{1000 * (time.perf_counter() - begun) / given.changes:.1f}")
        alone = image_seconds(pipeline, given)
        pipeline.unload_lora_weights()
        held = wardrobe(pipeline, number, 2**60)
        for key in order[1]:
            held(key, adapters[key])
        lines.append(f"| {' | '.join([*cells, f'{image_seconds(pipeline, given):.2f}', f'{alone:.2f}'])} |")
        pipeline.unload_lora_weights()
    return lines


def image_seconds(pipeline: Any, given: argparse.Namespace) -> float:
    size = {"batch_size": 1, "size": (given.side, given.side)}
    asked = [ImageRequest(_PROMPT, 0)]
    return fewest(lambda: list(draw(pipeline, asked, steps=given.steps, guidance_scale=2.0, **size)), given.device, given.turns)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=EMBEDDED_BASE)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--changes", type=int, default=50, help="requests that are followed")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # PEFT's, at each of many adapters
    given.device = pick_device(given.device)
    base = BaseModelParams(path=str(given.base.resolve()), resolution=given.side)
    begun = time.perf_counter()
    pipeline = load_family(base).load_pipeline(given.device)
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter() - begun
    frame = tiny_frame(base, given.rank, TARGETS)
    first = random_pair("content", "style", frame, base)
    others = (
        {key: tensor * (1 + number / 1000) for key, tensor in first.tensors.items()} for number in range(max(given.adapters))
    )
    adapters = [Adapter(tensors, first.metadata, first.lora_config) for tensors in others]
    size = sum(tensor.nbytes for tensor in first.tensors.values()) / 2**20
    put_on(pipeline, first)
    batches = by_batch(pipeline, given)
    pipeline.unload_lora_weights()
    lines = [*batches, "", *by_adapters(pipeline, adapters, given), ""]
    about = describe(given.device, torch.float32)
    lines.append(
        f"{datetime.now(UTC):%d %B %Y}, {about.get('gpu', about['processor'])}, {about['threads']} threads; {given.base.name}, "
        f"{given.side} px, {given.steps} steps; adapters of rank {given.rank}, {size:.1f} MiB each; base model loaded in "
        f"{loaded:.1f} s; at most {process_peak() / 2**30:.2f} GiB of memory."
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
