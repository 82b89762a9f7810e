"""The benchmark: finished work is kept, failures do not stop it, figures and intervals are what they say."""

import dataclasses

import pandas as pd
import pytest

from b4m_pipeline.benchmark import all_methods as baselines
from b4m_pipeline.benchmark import run as benchmark
from b4m_pipeline.benchmark.comparison import compare, table_of
from b4m_pipeline.benchmark.results import TRUE_DRAWING, BenchmarkError, References
from b4m_pipeline.common.provenance import code_version
from b4m_pipeline.evaluation import samples
from b4m_pipeline.evaluation.judges import EfficientNetJudge
from b4m_pipeline.evaluation.measures import similarity
from b4m_pipeline.training.params import TrainParams
from tests.benchmark.helpers import EVALUATION, params, task
from tests.conftest import PLAIN_TRAINING


def test_nothing_is_held_back_from_ours_alone() -> None:
    stage = {"steps": 1, "batch_size": 1, "learning_rate": 1.0} | PLAIN_TRAINING
    benchmark.require_equal_budgets(TrainParams(**stage))
    with pytest.raises(BenchmarkError, match=r"validation\.pictures must be 0"):
        benchmark.require_equal_budgets(TrainParams(**stage), TrainParams(**stage, validation={"pictures": 1}))


def test_finished_work_is_kept_and_failures_are_tried_again(tiny_training_set, tiny_base, references, tmp_path, monkeypatch):
    calls = []

    def broken(given):
        calls.append("broken")
        raise RuntimeError("no memory")

    def counted(given):
        calls.append("base")

    monkeypatch.setattr(benchmark, "METHODS", {"base": counted, "broken": broken, "sum": baselines.METHODS["sum"]})
    own = params(tmp_path, ["base", "broken", "sum"], ours="sum")
    seen = []
    first = benchmark.run_pair(task(tiny_training_set, tiny_base, tmp_path), references, own, EVALUATION, seen.append)
    assert [r.method for r in first] == [r.method for r in seen] == ["base", "broken", "sum"]
    assert first[1].error == "RuntimeError: no memory" and not first[1].pictures
    second = benchmark.run_pair(task(tiny_training_set, tiny_base, tmp_path), references, own, EVALUATION)
    assert calls == ["base", "broken", "broken"]
    for before, after in zip(first, second, strict=True):
        assert before.figures() == pytest.approx(after.figures(), nan_ok=True)
        assert [p.tobytes() for p in before.pictures.values()] == [p.tobytes() for p in after.pictures.values()]
    changed = EVALUATION.model_copy(update={"steps": 3})
    benchmark.run_pair(task(tiny_training_set, tiny_base, tmp_path), references, own, changed)
    assert calls.count("base") == 2  # other parameters: another result
    preserved = task(tiny_training_set, tiny_base, tmp_path)
    preserved.training_set = dataclasses.replace(tiny_training_set, others={"a cat toy": ""})
    plain = task(tiny_training_set, tiny_base, tmp_path)
    known = benchmark.fingerprint_of(plain, "base", EVALUATION, references)
    assert known != benchmark.fingerprint_of(preserved, "base", EVALUATION, references)
    other_truth = References(references.content, references.style, references.content)
    assert known != benchmark.fingerprint_of(plain, "base", EVALUATION, other_truth)
    assert known == benchmark.fingerprint_of(plain, "base", EVALUATION, references)
    table = table_of(second)
    assert table["code"].tolist() == [code_version(), "", code_version()]
    assert table["error"].tolist() == ["", "RuntimeError: no memory", ""]
    comparison = compare(table, "sum", 0)
    assert set(comparison["method"]) == {"base", "sum"}


def test_base_is_asked_in_plain_words(tiny_training_set, tiny_base, tmp_path):
    own = task(tiny_training_set, tiny_base, tmp_path)
    assert {request.prompt for request in benchmark.requests_of(own, "base", EVALUATION)} == {"a cup emoji in ink style"}
    requests = benchmark.requests_of(own, "ours", EVALUATION)
    assert {request.prompt for request in requests} == {"a snq emoji in w@z style"} and [
        request.seed for request in requests
    ] == [0, 1]
    again = benchmark.requests_of(dataclasses.replace(own, seed=1), "ours", EVALUATION)
    assert [request.seed for request in again] == [2, 3]  # no noise is drawn twice


def test_leaks_are_zero_for_the_truth_and_positive_for_what_leaks(references):
    judge, empty = EfficientNetJudge(), pd.DataFrame(index=range(1))
    truth = benchmark.add_leaks(empty, references.truth, references, judge)
    assert abs(truth["content_leak"][0]) < 1e-5 and abs(truth["style_leak"][0]) < 1e-5
    style_itself = benchmark.add_leaks(empty, references.style, references, judge)
    content_itself = benchmark.add_leaks(empty, references.content[:1], references, judge)
    assert style_itself["content_leak"][0] > 0.05 and content_itself["style_leak"][0] > 0.05
    same = benchmark.add_leaks(pd.DataFrame(index=range(2)), references.truth * 2, references, judge)
    other = benchmark.add_leaks(pd.DataFrame(index=range(2)), [*references.truth, *references.style], references, judge)
    assert abs(same["diversity"][0]) < 1e-5 and other["diversity"][0] > 0.05


def test_unknown_methods_and_pairs_of_one_name_are_refused(tmp_path):
    with pytest.raises(benchmark.BenchmarkError, match="'oours'"):
        benchmark.check_methods(params(tmp_path, ["oours", "ours"]))
    with pytest.raises(ValueError, match="not among the methods"):
        params(tmp_path, ["base"])
    with pytest.raises(ValueError, match="different names"):
        params(tmp_path, pairs=[{"content": "a/x", "style": "y"}, {"content": "b/x", "style": "y"}])


def test_methods_are_tried_with_every_seed_and_the_others_with_the_first(
    tiny_training_set, tiny_base, references, tmp_path, monkeypatch
):
    seeds = []

    def counted(given):
        seeds.append(given.seed)

    monkeypatch.setattr(benchmark, "METHODS", {"base": counted, "sum": lambda given: None})
    given = task(tiny_training_set, tiny_base, tmp_path)
    one = params(tmp_path, ["base", "sum"], ours="sum")
    first = benchmark.run_pair(given, references, one, EVALUATION)
    more = params(tmp_path, ["base", "sum"], ours="sum", seeds=[0, 2], repeated=["base"])
    results = benchmark.run_pair(given, references, more, EVALUATION)
    assert [(result.method, result.seed) for result in results] == [("base", 0), ("base", 2), ("sum", 0)]
    assert seeds == [0, 2]  # the first one's result is kept
    assert results[0].figures() == pytest.approx(first[0].figures()) != results[1].figures()
    assert {request.name for request in (tmp_path / "cup-ink/base").iterdir()} == {"0", "2"}


def test_what_the_base_draws_of_a_styles_things_is_drawn_once(tiny_base, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(benchmark, "draw_samples", lambda *given: calls.append(1) or samples.draw_samples(*given))
    drawn = benchmark.draw_known(["a car toy", None], tiny_base, EVALUATION, tmp_path, 0)
    again = benchmark.draw_known(["a car toy", None], tiny_base, EVALUATION, tmp_path, 0)
    assert [request.prompt for request in drawn] == ["a car toy"] * 2 and len(calls) == 1
    assert [image.tobytes() for image in drawn.values()] == [image.tobytes() for image in again.values()]
    benchmark.draw_known(["a car toy"], tiny_base, EVALUATION.model_copy(update={"guidance_scale": 9.0}), tmp_path, 0)
    benchmark.draw_known(["a hat toy"], tiny_base, EVALUATION, tmp_path, 0)
    assert len(calls) == 3 and benchmark.draw_known([None], tiny_base, EVALUATION, tmp_path, 0) == {}


def test_true_drawings_have_figures_of_their_own(tiny_training_set, tiny_base, references, tmp_path):
    given = task(tiny_training_set, tiny_base, tmp_path)
    assert benchmark.measure_truth(given, References(references.content, references.style, []), EVALUATION) is None
    true = benchmark.measure_truth(given, references, EVALUATION)
    judge, figures = EfficientNetJudge(), true.figures()
    seen = judge.look(references.truth)
    for kind in ("content", "style"):
        near = similarity(getattr(seen, kind), getattr(judge.look(getattr(references, kind)), kind))
        assert figures[kind] == pytest.approx(float(near), abs=1e-5)
    shares = {"kept", "content_kept", "style_kept"}
    assert set(figures) == shares | {"content", "style", "colour", "s_harm"}  # likeness to itself says nothing
    assert (true.pair, true.method) == ("cup-ink", TRUE_DRAWING)
