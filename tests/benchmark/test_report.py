"""The benchmark's report: one page with everything in it."""

import io

import pandas as pd

from b4m_pipeline.benchmark import report as benchmark_report
from b4m_pipeline.benchmark.comparison import compare, table_of
from b4m_pipeline.benchmark.results import FIGURES, TRUE_DRAWING, Result
from tests.benchmark.helpers import square


def test_pareto_front_holds_what_nobody_beats():
    points = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.5, 0.5), "worse": (0.4, 0.5), "same": (0.5, 0.5)}
    assert set(benchmark_report.pareto_front(points)) == {"a", "b", "c", "same"}


def test_report_is_one_page_with_everything_in_it(references):
    def result(method: str, value: float) -> Result:
        figures = {name: [value] for name in FIGURES}
        return Result("cup-ink", method, pd.DataFrame(figures), {"k": square((9, 9, 9))})

    results = [result("<ours>", 0.7), result("other", 0.5), Result("cup-ink", "bad", pd.DataFrame(), {}, error="E: <x>")]
    table = table_of(results)
    comparison = compare(table, "<ours>", 0)
    plots = {"p": benchmark_report.draw_scatter(comparison, "<ours>"), "b": benchmark_report.draw_bars(comparison, "<ours>")}
    sheet = benchmark_report.draw_sheet("cup-ink", results, references, "<ours>")
    assert sheet.height > 6 * 112
    assert sheet.tobytes() != benchmark_report.draw_sheet("cup-ink", results, references, "other").tobytes()  # ours stands out
    page = benchmark_report.as_html(table, comparison, pd.DataFrame(), plots, {"cup-ink": sheet}, "<ours>")
    assert page.count("data:image/png;base64,") == 3 and "http" not in page
    assert "&lt;ours&gt;" in page and "<ours>" not in page and "E: &lt;x&gt;" in page


def test_true_drawings_stand_beside_the_methods(references, monkeypatch):
    own = {name: [0.3] for name in ("kept", "content", "style", "s_harm")}
    true = Result("cup-ink", TRUE_DRAWING, pd.DataFrame(own), {"t": references.truth[0]})
    drawn = pd.DataFrame({name: [0.1] for name in FIGURES})
    table = table_of([Result("cup-ink", "ours", drawn, {"k": square((9, 9, 9))}), true])
    comparison = compare(table, "ours", 0)
    assert set(comparison.loc[comparison["method"] == TRUE_DRAWING, "measure"]) == set(own)
    stored = pd.read_csv(io.StringIO(table.to_csv(index=False)))  # as the catalog hands it on
    page = benchmark_report.as_html(stored, comparison, pd.DataFrame(), {}, {}, "ours")
    assert "1 pairs, 1 methods" in page and TRUE_DRAWING in page and "Failed" not in page
    said = "The true drawing is above every method by kept on 1 of 1 pairs, by S_harm on 1 of 1 pairs."
    assert said in page and said in benchmark_report.as_markdown(stored, comparison, "ours")

    judged: dict[str, tuple[float, float]] = {}
    monkeypatch.setattr(benchmark_report, "pareto_front", lambda points: judged.update(points) or points)
    benchmark_report.draw_scatter(comparison, "ours")
    assert set(judged) == {"ours"}  # no method is held against the truth


def test_the_spread_over_seeds_is_shown(references):
    results = [
        Result("cup-ink", "ours", pd.DataFrame({"content": [x]}), {"k": square((9, 9, 9))}, seed=i)
        for i, x in ((0, 0.2), (1, 0.4))
    ]
    table = table_of(results)
    comparison = compare(table, "ours", 0)
    assert "0.300 ± 0.141" in benchmark_report.as_html(table, comparison, pd.DataFrame(), {}, {}, "ours")
    assert "| 0.300 ± 0.141 |" in benchmark_report.as_markdown(table, comparison, "ours")
    sheets = [benchmark_report.draw_sheet("cup-ink", shown, references, "ours") for shown in (results, results[:1])]
    assert sheets[0].height > sheets[1].height


def test_the_markdown_table_has_means_and_says_what_is_clear_of_zero():
    rows = [("base", "style", 0.5, -0.2, -0.1), ("base", "truth", 0.25, -0.1, 0.1), ("ours", "style", 0.65, 0, 0)]
    columns = ["method", "measure", "mean", "difference_low", "difference_high"]
    comparison = pd.DataFrame(rows, columns=columns).assign(difference=0.0)
    assert benchmark_report.as_markdown(pd.DataFrame({"error": [], "code": []}), comparison, "ours").splitlines() == [
        "| | style | truth |",
        "|---|---|---|",
        "| base | 0.500 **[-0.200, -0.100]** | 0.250 [-0.100, +0.100] |",
        "| **ours** | 0.650 |  |",
        "",
        "No true drawing is known.",
    ]
