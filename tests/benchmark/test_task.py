"""One content and one style: budgets that are equal, trainings that are shared."""

import dataclasses

import pytest

from b4m_pipeline.benchmark import all_methods as baselines
from b4m_pipeline.benchmark import task as task_module
from b4m_pipeline.benchmark.params import PairParams
from b4m_pipeline.benchmark.task import concepts_of, prepare_pair
from b4m_pipeline.inputs.params import ConceptParams
from tests.benchmark.helpers import task
from tests.conftest import captioning_params, counterpart_params, ingestion_params, preservation_params
from tests.library.helpers import folder


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


def test_a_plain_lora_has_the_frames_layers_and_alpha_over_rank(shared) -> None:
    fields = shared.budget("content").model_dump()
    own, wider = shared.as_lora(fields), shared.as_lora(fields, rank=2 * shared.frame.rank)
    assert own.rank == shared.frame.rank and own.targets == shared.frame.targets
    assert wider.alpha / wider.rank == own.alpha / own.rank == shared.frame.alpha / shared.frame.rank
    assert own.steps == shared.budget("content").steps


def test_what_a_training_was_on_is_known(shared) -> None:
    base, variant, device, precision = shared.trained_on(shared.content_break)
    assert base.startswith("tiny_sdxl") and variant is None and (device, precision) == ("cpu", "no")
    about = shared.about()
    assert about["data_digest"] == shared.training_set.digest("content", "style") and '"zip_steps": 8' in about["params"]


def test_a_pair_is_called_as_the_run_and_is_no_partner_of_itself(tmp_path) -> None:
    names = ("cup", "ink", "koala", "noto")
    paths = {name: str(folder(tmp_path / name, (50 * index, 90, 90))) for index, name in enumerate(names)}
    content, style = ConceptParams(path="any", token="snq", noun="toy"), ConceptParams(path="other", token="w@z")
    partners = counterpart_params(
        contents=[ConceptParams(path=paths[name], token="ohwx") for name in ("koala", "cup")],
        styles=[ConceptParams(path=f"{paths['ink']}/../ink", token="qrv"), ConceptParams(path=paths["noto"], token="qrv")],
    )
    pair = PairParams(content=paths["cup"], style=paths["ink"])
    own_content, own_style, kept = concepts_of(pair, content, style, partners)
    assert (own_content.name, own_content.token, own_content.noun) == ("cup", "snq", "toy")
    assert (own_style.name, own_style.token) == ("ink", "w@z")
    assert [concept.name for concept in (*kept.contents, *kept.styles)] == ["koala", "noto"]  # by folder, however it is written

    preservation = preservation_params(contents=["cat"], styles=["oil"], number=8)
    given = (content, style, partners, ingestion_params(), captioning_params(), preservation)
    read = prepare_pair(pair, *given, 32, 0)
    assert read.prepared.manifest["concept"].unique().tolist() == ["cup", "ink", "koala", "noto"]
    assert "a cat toy in oil style" in read.preserved and any("snq" in prompt for prompt in read.preserved)
    assert len(read.prepared.references("style")) == 2
