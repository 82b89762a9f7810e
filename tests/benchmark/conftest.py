"""A task that tests share, and pictures that a pair is judged by."""

import pandas as pd
import pytest
import torch

from b4m_pipeline.benchmark.results import References
from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.inputs.training_set import TrainingSet
from tests.benchmark.helpers import disc, square, task


@pytest.fixture(scope="session")
def full_training_set(tiny_training_set, tiny_base):
    """The tiny set with all that a run adds: a look of the content, further captions, prompts to preserve."""
    plain = tiny_training_set
    content, style = (plain.rows(role).tolist()[:1] for role in ("content", "style"))
    table = plain.table.assign(caption_source="sidecar")
    look = table.loc[content].assign(picture="content/cup/0+comic", caption_source="look")
    variants = pd.concat([table.loc[content], look, table.loc[style]]).assign(caption_source="variant")
    added = [*content, *content, *content, *style]
    tensors = {key: torch.cat([value, value[added] + 0.3]) for key, value in plain.tensors.items()}
    others = ["a cat toy in oil style", "a snq toy in oil style", "a cat toy in w@z style"]
    encoded = load_family(tiny_base).encode_prompts(others)
    return TrainingSet(pd.concat([table, look, variants], ignore_index=True), tensors, plain.encoder, others, encoded)


@pytest.fixture(scope="session")
def shared(full_training_set, tiny_base, tmp_path_factory) -> Task:
    """One task for all tests: its trainings are done once."""
    made = task(full_training_set, tiny_base, tmp_path_factory.mktemp("shelf"))
    quiet = {"preservation_weight": 1.0}
    made.content_break, made.style_break = (own.model_copy(update=quiet) for own in (made.content_break, made.style_break))
    return made


@pytest.fixture(scope="session")
def references() -> References:
    return References([square((200, 0, 0)), square((0, 0, 200))], [disc((0, 90, 0), 3)], [square((150, 0, 0), 3)])
