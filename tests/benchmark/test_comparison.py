"""Means over pairs, differences to ours, and what seeds and true drawings say."""

import numpy as np
import pandas as pd
import pytest

from b4m_pipeline.benchmark.comparison import compare, truth_above
from b4m_pipeline.benchmark.results import TRUE_DRAWING, BenchmarkError


def test_differences_are_paired_and_intervals_are_over_pairs():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, 30)  # pairs differ much more than methods do
    rows = [
        {"pair": str(i), "method": method, "content": level[i] + shift + rng.normal(0, 0.01), "error": ""}
        for i in range(30)
        for method, shift in (("ours", 0.1), ("other", 0.0))
    ]
    found = compare(pd.DataFrame(rows), "ours", 0).set_index("method")
    other = found.loc["other"]
    assert other["difference"] == pytest.approx(-0.1, abs=0.01)
    assert other["difference_low"] < other["difference"] < other["difference_high"] < -0.09
    assert found.loc["ours", "low"] < found.loc["other", "mean"] < found.loc["ours", "high"]  # unpaired nothing can be said
    assert found.loc["other", "high"] - found.loc["other", "low"] == pytest.approx(2 * 1.96 * level.std() / 30**0.5, rel=0.2)


def test_nothing_to_compare_with_is_an_error():
    table = pd.DataFrame([{"pair": "a", "method": "ours", "error": "x"}, {"pair": "a", "method": "base", "error": ""}])
    with pytest.raises(BenchmarkError, match="'ours' has no result"):
        compare(table, "ours", 0)


def test_seeds_are_averaged_within_a_pair_and_their_spread_is_told():
    rows = [("a", "ours", 0, 0.4), ("a", "ours", 1, 0.6), ("b", "ours", 0, 0.9), ("a", "other", 0, 0.3), ("b", "other", 0, 0.3)]
    table = pd.DataFrame(rows, columns=["pair", "method", "seed", "content"]).assign(error="")
    found = compare(table, "ours", 0).set_index("method")
    assert found["mean"].to_dict() == pytest.approx({"ours": 0.7, "other": 0.3})
    assert found.loc["other", "difference"] == pytest.approx(-0.4) and found["pairs"].tolist() == [2, 2]
    assert found["seeds"].to_dict() == {"ours": 2, "other": 1}
    assert found.loc["ours", "over_seeds"] == pytest.approx(0.02**0.5) and np.isnan(found.loc["other", "over_seeds"])


def test_the_true_drawing_is_first_only_above_every_method():
    rows = [
        ("a", TRUE_DRAWING, 0.9, 0.3),
        ("a", "x", 0.8, 0.4),
        ("a", "y", 0.1, 0.2),
        ("b", TRUE_DRAWING, 0.5, 0.3),
        ("b", "x", 0.6, 0.2),
    ]
    table = pd.DataFrame([*rows, ("c", "x", 0.1, 0.1)], columns=["pair", "method", "kept", "s_harm"]).assign(error="")
    assert truth_above(table).values.tolist() == [["kept", 2, 1], ["s_harm", 2, 1]]
    assert truth_above(table[table["method"] != TRUE_DRAWING]).empty
