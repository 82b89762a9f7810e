"""Tables of a benchmark: every figure, and methods' means over the pairs with what they differ by from ours."""

import numpy as np
import pandas as pd

from b4m_pipeline.benchmark.results import FIGURES, TRUE_DRAWING, BenchmarkError, Result
from b4m_pipeline.common.seeding import numpy_generator


def table_of(results: list[Result]) -> pd.DataFrame:
    """A row for each (pair, method, seed): its figures, seconds, error."""
    rows = [
        {"pair": r.pair, "method": r.method, "seed": r.seed}
        | r.figures()
        | {"seconds": r.seconds, "pictures": len(r.pictures), "code": r.code, "error": r.error}
        for r in results
    ]
    return pd.DataFrame(rows)


def compare(table: pd.DataFrame, ours: str, seed: int, draws: int = 4000) -> pd.DataFrame:
    """Each method's mean over the pairs and its difference to ours, pair by pair, with 95 % bootstrap intervals over pairs.

    Columns: method, measure, pairs, mean, low, high, difference, difference_low, difference_high, seeds, over_seeds. A pair's
    figure is the mean over its seeds. Pairs are what is drawn anew, as seeds of one pair are no independent evidence about
    methods; a method's missing pairs are missing for the difference too. seeds: most of any pair; over_seeds: standard
    deviation over the seeds of one pair, its root mean square over pairs; NaN with one seed. Raises BenchmarkError if ours
    has no result.
    """
    done = table[table["error"] == ""]
    if ours not in set(done["method"]):
        raise BenchmarkError(f"benchmark.ours: {ours!r} has no result, so there is nothing to compare with: see the errors")
    rows = []
    for name in (name for name in FIGURES if name in done):
        wide = done.pivot_table(index="pair", columns="method", values=name)  # means over seeds
        seeds = done.dropna(subset=name).groupby(["method", "pair"])[name]
        numbers, spread = seeds.count(), seeds.var()
        for method in [m for m in dict.fromkeys(table["method"]) if m in wide]:
            values = wide[method].dropna()
            paired = (wide[method] - wide[ours]).dropna()
            if values.empty:
                continue
            row = {"method": method, "measure": name, "pairs": len(values), "mean": values.mean()}
            row["low"], row["high"] = _interval(values.to_numpy(), draws, seed, method, name)
            row |= {"seeds": int(numbers[method].max()), "over_seeds": spread[method].mean() ** 0.5}
            if len(paired):
                row["difference"] = paired.mean()
                row["difference_low"], row["difference_high"] = _interval(paired.to_numpy(), draws, seed, method, name)
            rows.append(row)
    return pd.DataFrame(rows)


def _interval(values: np.ndarray, draws: int, *key) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean."""
    rng = numpy_generator("benchmark", *key)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def truth_above(table: pd.DataFrame) -> pd.DataFrame:
    """On how many pairs the true drawing is above every method: measure (kept, s_harm), pairs (those that have a true drawing),
    above. Where that is few, the measure rewards something else than likeness to both."""
    done, rows = table[table["error"] == ""], []
    for name in [name for name in ("kept", "s_harm") if name in done]:
        wide = done.pivot_table(index="pair", columns="method", values=name)
        if TRUE_DRAWING in wide:
            both = pd.DataFrame({"truth": wide[TRUE_DRAWING], "best": wide.drop(columns=TRUE_DRAWING).max(axis=1)}).dropna()
            rows.append((name, len(both), int((both["truth"] > both["best"]).sum())))
    return pd.DataFrame(rows, columns=["measure", "pairs", "above"])
