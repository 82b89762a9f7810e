"""The benchmark: finished work is kept, failures do not stop it, figures and intervals are what they say."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from b4m_pipeline.benchmark import all_methods as baselines
from b4m_pipeline.benchmark import run as benchmark
from b4m_pipeline.benchmark.run import BenchmarkError, References, Result
from b4m_pipeline.common.provenance import code_version
from b4m_pipeline.evaluation.judges import EfficientNetJudge
from b4m_pipeline.training.params import TrainParams
from tests.benchmark.helpers import EVALUATION, disc, params, square, task
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
    table = benchmark.table_of(second)
    assert table["code"].tolist() == [code_version(), "", code_version()]
    assert table["error"].tolist() == ["", "RuntimeError: no memory", ""]
    comparison = benchmark.compare(table, "sum", 0)
    assert set(comparison["method"]) == {"base", "sum"}


def test_half_written_results_are_done_again(references, tmp_path):
    result = Result("cup-ink", "base", pd.DataFrame({"content": [0.5]}), {"a": square((1, 2, 3))}, 1.0)
    benchmark.save_result(result, tmp_path, "f")
    assert benchmark.load_result(tmp_path, "f").figures() == {"content": 0.5}
    assert benchmark.load_result(tmp_path, "g") is None
    (tmp_path / "0.png").write_bytes(b"")
    assert benchmark.load_result(tmp_path, "f") is None
    (tmp_path / benchmark.RECORD).write_text("{")
    assert benchmark.load_result(tmp_path, "f") is None


def test_base_is_asked_in_plain_words(tiny_training_set, tiny_base, tmp_path):
    own = task(tiny_training_set, tiny_base, tmp_path)
    assert {request.prompt for request in benchmark.requests_of(own, "base", EVALUATION)} == {"a cup emoji in ink style"}
    requests = benchmark.requests_of(own, "ours", EVALUATION)
    assert {request.prompt for request in requests} == {"a snq emoji in w@z style"} and [
        request.seed for request in requests
    ] == [0, 1]


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


def test_measures_are_validated_on_true_drawings(references):
    other = References([disc((200, 0, 0)), disc((0, 0, 200))], [square((0, 90, 0), 7)], [disc((150, 0, 0), 7)])
    found = benchmark.validate_measures({"a": references, "b": other}).set_index("measure")
    assert found.loc["content", "right"] == 1 and found.loc["content", "comparisons"] == 2
    swapped = References(references.content, references.style, other.truth)  # a truth that is the other pair's
    wrong = benchmark.validate_measures({"a": swapped, "b": other}).set_index("measure")
    assert wrong.loc["content", "right"] == 0.5
    assert benchmark.validate_measures({"a": references}).empty


def test_differences_are_paired_and_intervals_are_over_pairs():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, 30)  # pairs differ much more than methods do
    rows = [
        {"pair": str(i), "method": method, "content": level[i] + shift + rng.normal(0, 0.01), "error": ""}
        for i in range(30)
        for method, shift in (("ours", 0.1), ("other", 0.0))
    ]
    found = benchmark.compare(pd.DataFrame(rows), "ours", 0).set_index("method")
    other = found.loc["other"]
    assert other["difference"] == pytest.approx(-0.1, abs=0.01)
    assert other["difference_low"] < other["difference"] < other["difference_high"] < -0.09
    assert found.loc["ours", "low"] < found.loc["other", "mean"] < found.loc["ours", "high"]  # unpaired nothing can be said
    assert found.loc["other", "high"] - found.loc["other", "low"] == pytest.approx(2 * 1.96 * level.std() / 30**0.5, rel=0.2)


def test_nothing_to_compare_with_is_an_error():
    table = pd.DataFrame([{"pair": "a", "method": "ours", "error": "x"}, {"pair": "a", "method": "base", "error": ""}])
    with pytest.raises(benchmark.BenchmarkError, match="'ours' has no result"):
        benchmark.compare(table, "ours", 0)


def test_unknown_methods_and_pairs_of_one_name_are_refused(tmp_path):
    with pytest.raises(benchmark.BenchmarkError, match="'oours'"):
        benchmark.check_methods(params(tmp_path, ["oours", "ours"]))
    with pytest.raises(ValueError, match="not among the methods"):
        params(tmp_path, ["base"])
    with pytest.raises(ValueError, match="different names"):
        params(tmp_path, pairs=[{"content": "a/x", "style": "y"}, {"content": "b/x", "style": "y"}])
