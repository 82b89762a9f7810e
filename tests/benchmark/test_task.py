"""One content and one style: budgets that are equal, trainings that are shared."""

import dataclasses

import pytest

from b4m_pipeline.benchmark import methods as baselines
from b4m_pipeline.benchmark import task as task_module
from tests.benchmark.helpers import task


def test_everyone_sees_as_many_pictures(shared) -> None:
    """Ours: 3 x (2 + 1), 5 x (2 + 1) in the breaks, 2 x 2 in make."""
    content, style = (shared.budget(kind) for kind in ("content", "style"))
    assert content.steps * content.batch_size + style.steps * style.batch_size == pytest.approx(9 + 15 + 4, abs=2)


def test_others_see_as_many_pictures_however_they_are_accumulated(tiny_training_set, tiny_base, tmp_path) -> None:
    plain = task(tiny_training_set, tiny_base, tmp_path)
    content, make = plain.content_break, plain.make
    shown = content.steps * (content.batch_size + content.counterpart_batch_size) + make.steps * make.batch_size / 2
    assert plain.budget("content").steps == round(shown / content.batch_size)
    four = plain.content_break.model_copy(update={"gradient_accumulation": 4})
    more = dataclasses.replace(plain, content_break=four).budget("content")
    wanted = 4 * content.steps * (content.batch_size + content.counterpart_batch_size) + make.steps * make.batch_size / 2
    assert more.steps == round(wanted / (4 * content.batch_size)) and more.gradient_accumulation == 4


def test_pairs_of_one_style_share_its_trainings_and_each_counts_them(tiny_training_set, tiny_base, tmp_path, monkeypatch):
    trained, original = [], task_module.train_lora

    def counted(name, *rest, **keywords):
        trained.append(name)
        return original(name, *rest, **keywords)

    monkeypatch.setattr(task_module, "train_lora", counted)
    table = tiny_training_set.table
    other = table.assign(caption=table["caption"].where(table["role"] != "content", "a snq toy, once more"))
    other = dataclasses.replace(tiny_training_set, table=other)
    first = task(tiny_training_set, tiny_base, tmp_path)
    baselines.METHODS["sum"](first)
    assert trained == ["content", "style"] and first.shelf.reused == 0
    second = task(other, tiny_base, tmp_path)  # a new run
    baselines.METHODS["sum"](second)
    assert trained == ["content", "style", "content"]
    once = second.shelf.reused
    baselines.METHODS["SVD"](second)
    assert len(trained) == 3 and second.shelf.reused >= 2 * once > 0  # style's again, and content's
    baselines.METHODS["Orthogonal Adaptation"](second)
    assert len(trained) == 5  # trained otherwise
