"""A task and a benchmark at toy size."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from b4m_pipeline.benchmark.params import BenchmarkParams, CompetitorParams
from b4m_pipeline.benchmark.shelf import Shelf
from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams, MakeParams
from tests.conftest import PLAIN_BREAK, PLAIN_EVALUATION, PLAIN_MAKE, TINY_FRAME

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_embedding.linear_2"]
WORDS = {"template": "{article} {content} in {style} style", "contents": ["cat", "dog", "car"], "styles": ["ink", "oil"]}
BREAK = {
    "steps": 3,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "counterpart_batch_size": 1,
    "counterpart_learning_rate": 1e-3,
    "precision": "no",
} | PLAIN_BREAK
COMPETITORS = {
    "learning_rate": 1e-2,
    "joint_learning_rate": 1e-2,
    "orthogonal_learning_rate": 1e-2,
    "density": 0.5,
    "np_strength": 0.5,
    "zip_steps": 100,
    "zip_learning_rate": 0.01,
    "zip_overlap_weight": 0.01,
    "k_lora_alpha": 1.5,
    "k_lora_beta": 0.5,
}


def task(training_set, base, folder) -> Task:
    return Task(
        training_set,
        base,
        FrameParams(**TINY_FRAME | {"targets": TARGETS, "words": WORDS}),
        ConceptParams(name="cup", path="cup", token="snq"),
        ConceptParams(name="ink", path="ink", token="w@z"),
        BreakParams(**BREAK),
        BreakParams(**BREAK | {"steps": 5}),
        MakeParams(steps=2, batch_size=2, learning_rate=1e-2, precision="no", **PLAIN_MAKE),
        CompetitorParams(**COMPETITORS | {"zip_steps": 8, "zip_learning_rate": 0.05}),
        seed=0,
        shelf=Shelf(folder),
    )


EVALUATION = EvaluationParams(
    prompts=["{article} {content} {noun} in {style} style"],
    content_prompt="{content}",
    style_prompt="{style}",
    samples=2,
    steps=2,
    **PLAIN_EVALUATION,
)


def params(folder, methods=("base", "sum", "ours"), **changes) -> BenchmarkParams:
    pairs = [{"content": "x/cup", "style": "x/ink"}]
    return BenchmarkParams(
        **{"pairs": pairs, "methods": list(methods), "ours": "ours", "folder": str(folder), "competitors": COMPETITORS}
        | changes
    )


def square(colour, texture: int = 0) -> Image.Image:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[8:24, 8:24] = colour
    if texture:
        pixels[::texture] = pixels[::texture] // 2
    return Image.fromarray(pixels)


def disc(colour, texture: int = 0) -> Image.Image:
    y, x = np.mgrid[0:32, 0:32] - 15.5
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[np.hypot(x, y) < 10] = colour
    if texture:
        pixels[::texture] = pixels[::texture] // 2
    return Image.fromarray(pixels)


def require_whole(adapter: Adapter, task: Task, folder: Path) -> None:
    """An adapter of the task's layers that changes something and can be written."""
    assert adapter.modules() == task.lora("content").modules()
    assert all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values())
    assert any(adapter.delta(module).abs().max() > 0 for module in adapter.modules())
    save_adapter(adapter, folder)
