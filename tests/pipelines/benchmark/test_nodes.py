"""The benchmark as a pipeline, with methods that need no training."""

import pandas as pd
import pytest

from b4m_pipeline.benchmark import run as bench
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines.benchmark import create_pipeline
from b4m_pipeline.training.params import BreakParams, MakeParams
from tests.benchmark.helpers import BREAK, EVALUATION, params
from tests.conftest import (
    PLAIN_MAKE,
    TINY_FRAME,
    captioning_params,
    counterpart_params,
    drawn_counterparts,
    ingestion_params,
    lora_of,
    preservation_params,
)
from tests.library.helpers import folder
from tests.pipelines.helpers import run

MAKE = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3} | PLAIN_MAKE


def given(tmp_path, base, **changes) -> dict:
    pairs = [{"content": str(tmp_path / "cup"), "style": str(tmp_path / "ink")}]
    own = {
        **{"benchmark": params(tmp_path / "kept", ["base", "ours"], pairs=pairs), "base_model": base, "seed": 0},
        **{"content": ConceptParams(path="any", token="snq", noun="toy"), "style": ConceptParams(path="any", token="w@z")},
        **{"counterparts": counterpart_params(), "frame": FrameParams(**TINY_FRAME), "make": MakeParams(**MAKE)},
        **{"content_break": BreakParams(**BREAK), "style_break": BreakParams(**BREAK), "ingestion": ingestion_params()},
        **{"captioning": captioning_params(), "preservation": preservation_params(), "evaluation": EVALUATION},
    }
    return {f"params_{name}": value for name, value in (own | changes).items()}


@pytest.fixture
def methods(tmp_path, tiny_sdxl, monkeypatch) -> list[str]:
    """Names of the tasks that "ours" was asked for. The folders of its pair are there."""
    asked = []
    for number, name in enumerate(("cup", "ink")):
        folder(tmp_path / name, (200 * number, 90, 90))

    def ours(task):
        asked.append(task.name)
        return lora_of(tiny_sdxl)

    monkeypatch.setattr(bench, "METHODS", {"base": lambda task: None, "ours": ours})
    return asked


def test_every_method_is_in_the_table_the_report_and_on_the_sheet(methods, tmp_path, tiny_base):
    catalog = run(create_pipeline(), **given(tmp_path, tiny_base))
    table = catalog.load("benchmark_table")
    assert table[["pair", "method", "error"]].values.tolist() == [["cup-ink", "base", ""], ["cup-ink", "ours", ""]]
    assert table["seed"].tolist() == [0, 0] and {"kept", "content_kept", "style_kept", "colour"} <= set(table)
    assert set(catalog.load("benchmark_comparison")["method"]) == {"base", "ours"}
    assert catalog.load("benchmark_sheets").keys() == {"cup-ink"}
    assert "cup-ink" in catalog.load("benchmark_report") and "| **ours** |" in catalog.load("benchmark_summary")
    again = run(create_pipeline().to_nodes("compare_methods"), **given(tmp_path, tiny_base)).load("benchmark_table")
    assert methods == ["cup-ink"]  # kept, not done again
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))


def test_what_cannot_be_compared_is_refused_before_anything_is_read(methods, tmp_path, tiny_base):
    held = MakeParams(**MAKE, validation={"pictures": 1})
    with pytest.raises(bench.BenchmarkError, match=r"validation\.pictures"):
        run(create_pipeline(), **given(tmp_path, tiny_base, make=held))
    unknown = params(tmp_path, ["ours", "theirs"])
    with pytest.raises(bench.BenchmarkError, match="'theirs'"):
        run(create_pipeline(), **given(tmp_path, tiny_base, benchmark=unknown))
    assert methods == []


def test_methods_are_given_counterparts_that_the_base_model_draws(methods, tmp_path, tiny_base, monkeypatch):
    seen = []

    def take(task):
        seen.append(task.training_set.table)
        raise ValueError("enough")

    monkeypatch.setitem(bench.METHODS, "ours", take)
    run(create_pipeline().to_nodes("run_benchmark"), **given(tmp_path, tiny_base, counterparts=drawn_counterparts(tmp_path)))
    captions = seen[0].groupby("role")["caption"].agg(list)
    assert captions["counterpart_content"] == ["an ohwx dog in neon style"]
    assert captions["counterpart_style"] == ["a dog emoji in qrv style"]
