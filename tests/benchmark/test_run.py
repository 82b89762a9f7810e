"""The benchmark: finished work is kept, failures do not stop it, figures and intervals are what they say."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from b4m_pipeline.benchmark import methods as baselines
from b4m_pipeline.benchmark import report as benchmark_report
from b4m_pipeline.benchmark import run as benchmark
from b4m_pipeline.benchmark import task as task_module
from b4m_pipeline.benchmark.params import BenchmarkParams
from b4m_pipeline.benchmark.run import BenchmarkError, References, Result
from b4m_pipeline.common.provenance import code_version
from b4m_pipeline.evaluation.judges import EfficientNetJudge, similarity
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.training.params import TrainParams
from tests.benchmark.test_methods import COMPETITORS, task
from tests.conftest import PLAIN_TRAINING

EVALUATION = EvaluationParams(
    prompts=["{article} {content} {noun} in {style} style"],
    content_prompt="{content}",
    style_prompt="{style}",
    samples=2,
    steps=2,
    guidance_scale=3.0,
    batch_size=8,
    truth_path=None,
    clip=None,
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


@pytest.fixture(scope="module")
def references() -> References:
    return References([square((200, 0, 0)), square((0, 0, 200))], [disc((0, 90, 0), 3)], [square((150, 0, 0), 3)])


def test_others_see_as_many_pictures_however_they_are_accumulated(tiny_training_set, tiny_base, tmp_path) -> None:
    plain = task(tiny_training_set, tiny_base, tmp_path)
    content, make = plain.content_break, plain.make
    shown = content.steps * (content.batch_size + content.counterpart_batch_size) + make.steps * make.batch_size / 2
    assert plain.budget("content").steps == round(shown / content.batch_size)
    four = plain.content_break.model_copy(update={"gradient_accumulation": 4})
    more = dataclasses.replace(plain, content_break=four).budget("content")
    wanted = 4 * content.steps * (content.batch_size + content.counterpart_batch_size) + make.steps * make.batch_size / 2
    assert more.steps == round(wanted / (4 * content.batch_size)) and more.gradient_accumulation == 4


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


def test_pareto_front_holds_what_nobody_beats():
    points = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.5, 0.5), "worse": (0.4, 0.5), "same": (0.5, 0.5)}
    assert set(benchmark_report.pareto_front(points)) == {"a", "b", "c", "same"}


def test_report_is_one_page_with_everything_in_it(references):
    def result(method: str, value: float) -> Result:
        figures = {name: [value] for name in benchmark.FIGURES}
        return Result("cup-ink", method, pd.DataFrame(figures), {"k": square((9, 9, 9))})

    results = [result("<ours>", 0.7), result("other", 0.5), Result("cup-ink", "bad", pd.DataFrame(), {}, error="E: <x>")]
    table = benchmark.table_of(results)
    comparison = benchmark.compare(table, "<ours>", 0)
    plots = {"p": benchmark_report.draw_scatter(comparison, "<ours>"), "b": benchmark_report.draw_bars(comparison, "<ours>")}
    sheet = benchmark_report.draw_sheet("cup-ink", results, references, "<ours>")
    assert sheet.height > 6 * 112
    assert sheet.tobytes() != benchmark_report.draw_sheet("cup-ink", results, references, "other").tobytes()  # ours stands out
    page = benchmark_report.as_html(table, comparison, pd.DataFrame(), plots, {"cup-ink": sheet}, "<ours>")
    assert page.count("data:image/png;base64,") == 3 and "http" not in page
    assert "&lt;ours&gt;" in page and "<ours>" not in page and "E: &lt;x&gt;" in page


def test_true_drawings_have_figures_of_their_own_beside_the_methods(references, monkeypatch):
    true = benchmark.measure_truth("cup-ink", references, EVALUATION)
    assert benchmark.measure_truth("cup-ink", References(references.content, references.style, []), EVALUATION) is None
    judge, figures = EfficientNetJudge(), true.figures()
    seen = judge.look(references.truth)
    for kind in ("content", "style"):
        near = similarity(getattr(seen, kind), getattr(judge.look(getattr(references, kind)), kind))
        assert figures[kind] == pytest.approx(float(near), abs=1e-5)
    assert set(figures) == {"content", "style", "s_harm"}  # likeness to itself says nothing

    drawn = pd.DataFrame({name: [0.1] for name in benchmark.FIGURES})
    table = benchmark.table_of([Result("cup-ink", "ours", drawn, {"k": square((9, 9, 9))}), true])
    comparison = benchmark.compare(table, "ours", 0)
    assert set(comparison.loc[comparison["method"] == benchmark.TRUE_DRAWING, "measure"]) == {"content", "style", "s_harm"}
    stored = pd.read_csv(io.StringIO(table.to_csv(index=False)))  # as the catalog hands it on
    page = benchmark_report.as_html(stored, comparison, pd.DataFrame(), {}, {}, "ours")
    assert "1 pairs, 1 methods" in page and benchmark.TRUE_DRAWING in page and "Failed" not in page

    judged: dict[str, tuple[float, float]] = {}
    monkeypatch.setattr(benchmark_report, "pareto_front", lambda points: judged.update(points) or points)
    benchmark_report.draw_scatter(comparison, "ours")
    assert set(judged) == {"ours"}  # no method is held against the truth


def test_the_markdown_table_has_means_and_says_what_is_clear_of_zero():
    rows = [("base", "style", 0.5, -0.2, -0.1), ("base", "truth", 0.25, -0.1, 0.1), ("ours", "style", 0.65, 0, 0)]
    columns = ["method", "measure", "mean", "difference_low", "difference_high"]
    comparison = pd.DataFrame(rows, columns=columns).assign(difference=0.0)
    assert benchmark_report.as_markdown(comparison, "ours").splitlines() == [
        "| | style | truth |",
        "|---|---|---|",
        "| base | 0.500 **[-0.200, -0.100]** | 0.250 [-0.100, +0.100] |",
        "| **ours** | 0.650 |  |",
    ]


def test_a_part_is_about_its_share_of_the_pairs(tmp_path):
    pairs = [{"content": f"x/{content}", "style": f"x/{style}"} for content, style in ("ai", "bj", "ck", "di", "ej")]

    def names(**changes) -> list[str]:
        return [pair.name for pair in params(tmp_path, **{"pairs": pairs} | changes).chosen_pairs()]

    assert names() == ["a-i", "b-j", "c-k", "d-i", "e-j"]
    assert names(part="1/2") == ["a-i", "c-k", "d-i"] and names(part="2/2") == ["b-j", "e-j"]  # a style is in one part
    for wrong, reason in (("4/4", "N at most 3"), ("3/2", "K must be at most N"), ("0/2", "pattern"), ("2", "pattern")):
        with pytest.raises(ValueError, match=reason):
            names(part=wrong)
