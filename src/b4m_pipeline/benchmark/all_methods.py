"""Every method of the benchmark by name. A further one is a function from a Task to an adapter, or to a way to draw."""

from collections.abc import Callable
from functools import partial

from b4m_pipeline.benchmark.k_lora import k_lora
from b4m_pipeline.benchmark.other_methods import b_lora, joint, merge, np_lora, orthogonal_adaptation, zip_lora
from b4m_pipeline.benchmark.ours import OURS, equal_parameters
from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.diffusion.sampling import WayToDraw
from b4m_pipeline.method.adapter import Adapter

Method = Callable[[Task], Adapter | WayToDraw | None]

METHODS: dict[str, Method] = {
    "base": lambda task: None,
    "joint": joint,
    "joint, equal parameters": lambda task: joint(task, equal_parameters(task)),
    "sum": partial(merge, how="cat"),
    "TIES": partial(merge, how="ties_svd"),
    "DARE": partial(merge, how="dare_ties_svd"),
    "SVD": partial(merge, how="svd"),
    "Orthogonal Adaptation": orthogonal_adaptation,
    "NP-LoRA": np_lora,
    "ZipLoRA": zip_lora,
    "K-LoRA": k_lora,
    "B-LoRA": b_lora,
    **OURS,
}
"""By the name that reports show. "base" has no adapter: it is asked in plain words."""
