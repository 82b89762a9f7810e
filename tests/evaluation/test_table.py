"""What the figures are made of, on drawings of a tiny random SDXL."""

import numpy as np
import pandas as pd
import pytest

from b4m_pipeline.evaluation.samples import KNOWN, MADE
from b4m_pipeline.evaluation.table import flat_metrics, measure, summarise
from tests.evaluation.helpers import PARAMS, THINGS


@pytest.fixture(scope="module")
def measured(evaluated, tiny_manifest):
    manifest, by_key = tiny_manifest
    content, style = ([by_key[key] for key in manifest[manifest.role == role].picture] for role in ("content", "style"))
    pictures, table = evaluated
    made = table[(table.system == MADE) & (table.kind == "composition")].picture.iloc[0]
    return measure(table, pictures, content, style, [pictures[made]], PARAMS, THINGS), content, style


def test_measures_have_sense_or_are_left_out(measured):
    table = measured[0]
    composed = table.kind == "composition"
    assert table.truth.notna().equals(composed) and table.truth_distance.notna().equals(composed)
    assert table[table.kind.isin(["content", "style"])].s_harm.isna().all()
    itself = table[(table.system == MADE) & composed].iloc[0]  # the truth of this test
    assert itself.truth == pytest.approx(1, abs=1e-4) and itself.truth_distance == pytest.approx(0, abs=1e-4)
    content, style = table["content"], table["style"]
    expected = 2 * content * style / (content + style)
    assert np.allclose(table.s_harm[composed], expected[composed], atol=1e-5)
    assert "content_clip" not in table
    assert table.kept[composed].equals(table[composed][["content_kept", "style_kept"]].min(axis=1))
    assert table.kept.between(0, 1).equals(table.s_harm.notna()) and table.colour.between(0, 1).all()
    assert itself.truth_colour == pytest.approx(1) and table.truth_colour.notna().equals(composed)


def test_summary_has_an_interval_around_each_mean(measured):
    table, _, _ = measured
    summary = summarise(table, seed=0)
    assert (summary.low <= summary["mean"] + 1e-9).all() and (summary["mean"] <= summary.high + 1e-9).all()
    row = summary[(summary.system == MADE) & (summary.kind == "composition") & (summary.measure == "style")].iloc[0]
    own = table[(table.system == MADE) & (table.kind == "composition")]["style"]
    assert row["mean"] == pytest.approx(own.mean()) and row.pictures == 2
    assert summarise(table, seed=0).equals(summary)
    assert flat_metrics(summary)["evaluation.made.composition.style"] == pytest.approx(own.mean())


def test_figures_survive_a_csv(measured, tmp_path):
    table, _, _ = measured
    table.to_csv(tmp_path / "t.csv", index=False)
    again = pd.read_csv(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(summarise(again, 0), summarise(table, 0), check_dtype=False, rtol=1e-5)


def test_what_the_base_draws_of_known_things_is_no_system_of_its_own(measured):
    table = measured[0]
    assert KNOWN in set(table.kind) and KNOWN not in set(summarise(table, seed=0).kind)
