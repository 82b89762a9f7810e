"""Every method of the benchmark by name. A further one is a function from a Task to an adapter, or to a way to draw."""

from collections.abc import Callable
from functools import partial

from b4m_pipeline.benchmark.k_lora import k_lora
from b4m_pipeline.benchmark.other_methods import b_lora, joint, merged, orthogonal_adaptation, zip_lora
from b4m_pipeline.benchmark.ours import OURS, equal_parameters
from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.diffusion.sampling import WayToDraw
from b4m_pipeline.method.adapter import Adapter

Method = Callable[[Task], Adapter | WayToDraw | None]

METHODS: dict[str, Method] = {
    "base": lambda task: None,
    "joint": joint,
    "joint, equal parameters": lambda task: joint(task, equal_parameters(task)),
    "sum": partial(merged, how="sum"),
    "TIES": partial(merged, how="ties"),
    "DARE": partial(merged, how="dare"),
    "SVD": partial(merged, how="svd"),
    "Orthogonal Adaptation": orthogonal_adaptation,
    "NP-LoRA": partial(merged, how="np"),
    "ZipLoRA": zip_lora,
    "K-LoRA": k_lora,
    "B-LoRA": b_lora,
    **OURS,
}
"""By the name that reports show. "base" has no adapter: it is asked in plain words."""
