"""A benchmark's results as pictures and as one HTML file that needs nothing beside it."""

import base64
import html
import io
from collections.abc import Callable, Iterator

import matplotlib
import pandas as pd
from PIL import Image

from b4m_pipeline.benchmark.comparison import truth_above
from b4m_pipeline.benchmark.results import FIGURES, LOWER_IS_BETTER, TRUE_DRAWING, References, Result
from b4m_pipeline.common.sheets import Row, paint_grid

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  the backend comes first: there may be no display

_OURS, _OTHER = "#1e6e3c", "#7a7a7a"


def draw_sheet(pair: str, results: list[Result], references: References, ours: str) -> Image.Image:
    """One pair: references and truth above, then a row for each method and seed of its training with its pictures."""
    rows = [Row("content", references.content, "references"), Row("style", references.style, "references")]
    rows += [Row("truth", references.truth, "never seen in training")] if references.truth else []
    several = len({result.seed for result in results}) > 1
    for result in results:
        note = f"seed {result.seed}" if several else ""
        note = f"failed: {result.error}" if result.error else note
        rows.append(Row(result.method, list(result.pictures.values()), note, strong=result.method == ours))
    return paint_grid(rows, title=pair)


def draw_scatter(comparison: pd.DataFrame, ours: str) -> Image.Image:
    """Content against style, a point for each method with its intervals, and the front of those that no other beats in both;
    the true drawings, where known, stand apart from it."""
    means = {name: comparison[comparison["measure"] == name].set_index("method") for name in ("content", "style")}
    methods = [method for method in means["content"].index if method in means["style"].index]
    figure, axes = plt.subplots(figsize=(8, 6), dpi=110)
    points = {method: (means["content"].loc[method, "mean"], means["style"].loc[method, "mean"]) for method in methods}
    for method, (x, y) in points.items():
        colour = _OURS if method == ours else _OTHER
        spread = [
            [[value - means[name].loc[method, "low"]], [means[name].loc[method, "high"] - value]]
            for name, value in (("content", x), ("style", y))
        ]
        axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], fmt="o", color=colour, elinewidth=0.6, markersize=6)
    front = sorted(pareto_front({name: point for name, point in points.items() if name != TRUE_DRAWING}).values())
    axes.plot([x for x, _ in front], [y for _, y in front], color=_OURS, linewidth=0.8, linestyle="--", label="Pareto front")
    # Names beside the plot, by height: methods lie close together.
    for place, (method, point) in enumerate(sorted(points.items(), key=lambda item: -item[1][1])):
        colour = _OURS if method == ours else _OTHER
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.4}
        height = 1 - (place + 0.5) / len(points)
        axes.annotate(
            method, point, (1.04, height), textcoords="axes fraction", va="center", fontsize=8, color=colour, arrowprops=line
        )
    axes.set_xlabel("content: similarity to its pictures")
    axes.set_ylabel("style: similarity to its pictures")
    axes.legend(loc="lower left", fontsize=8)
    return _picture(figure)


def pareto_front(points: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The points that no other one equals or exceeds in both coordinates."""
    return {
        name: (x, y)
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    }


def draw_bars(comparison: pd.DataFrame, ours: str) -> Image.Image:
    """A panel for each measure, a bar with its interval for each method."""
    names = [name for name in FIGURES if name in set(comparison["measure"])]
    across = min(len(names), 7)
    down = -(-len(names) // across)
    figure, panels = plt.subplots(down, across, figsize=(2.6 * across + 2, 5 * down), dpi=100, sharey=True, squeeze=False)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels.flat, names, strict=False):
        rows = comparison[comparison["measure"] == name].iloc[::-1]
        errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        colours = [_OURS if method == ours else "#b9b9b9" for method in rows["method"]]
        axes.barh(rows["method"], rows["mean"], xerr=errors, color=colours, error_kw={"elinewidth": 0.8})
        arrow = "lower is better" if name in LOWER_IS_BETTER else "higher is better"
        axes.set_title(f"{FIGURES[name]}\n({arrow})" if name != "diversity" else FIGURES[name], fontsize=9)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    return _picture(figure)


def _picture(figure: plt.Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


def _embedded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def as_html(
    table: pd.DataFrame,
    comparison: pd.DataFrame,
    validation: pd.DataFrame,
    plots: dict[str, Image.Image],
    sheets: dict[str, Image.Image],
    ours: str,
) -> str:
    """The whole report as one page."""
    names = [name for name in FIGURES if name in set(comparison["measure"])]
    table = _with_texts(table)
    methods = set(table["method"]) - {TRUE_DRAWING}
    parts = ["<h1>Content-style benchmark</h1>"]
    parts.append(
        f"<p>{table['pair'].nunique()} pairs, {len(methods)} methods. Means over pairs; in brackets 95 % "
        f"bootstrap intervals over pairs. Below each mean the difference to <b>{html.escape(ours)}</b>, pair by pair. Where "
        "there are several seeds, a pair's figure is their mean, and ± is their standard deviation within a pair.</p>"
    )
    made_by = sorted(set(table["code"]) - {""})
    parts.append(f"<p>Made by {html.escape(', '.join(made_by))}.</p>" if made_by else "")
    parts.append(_comparison_table(comparison, names, ours))
    parts.append(f"<p>{html.escape(_about_truth(table))}</p>")
    for title, plot in plots.items():
        parts.append(f"<h2>{html.escape(title)}</h2>{_embedded(plot)}")
    parts.append(
        "<h2>Can the measures be believed?</h2><p>Share of the comparisons in which a true drawing is nearer to its own pair's "
        "pictures than to another pair's, or, recoloured, farther from the right colours; a coin would have 0.5.</p>"
    )
    parts.append(validation.round(3).to_html(index=False, border=0) if len(validation) else "<p>Too few true drawings.</p>")
    failed = table[table["error"] != ""]
    if len(failed):
        parts.append("<h2>Failed</h2>" + failed[["pair", "method", "error"]].to_html(index=False, border=0))
    parts.append("<h2>Pictures</h2>")
    parts += [f"<h3>{html.escape(pair)}</h3>{_embedded(sheet)}" for pair, sheet in sheets.items()]
    parts.append("<h2>Every pair</h2>" + table.drop(columns="error").round(3).to_html(index=False, border=0))
    return _PAGE.format(body="\n".join(parts))


def _with_texts(table: pd.DataFrame) -> pd.DataFrame:
    """The table with "" where a CSV file has nothing."""
    texts = dict.fromkeys(("error", "code"), object)
    return table.astype(texts).fillna({"error": "", "code": ""})


def _about_truth(table: pd.DataFrame) -> str:
    found = [f"by {FIGURES[row.measure]} on {row.above} of {row.pairs} pairs" for row in truth_above(table).itertuples()]
    return f"The true drawing is above every method {', '.join(found)}." if found else "No true drawing is known."


def _rows(
    comparison: pd.DataFrame, names: list[str], ours: str, cell: Callable[[pd.Series, bool], str]
) -> Iterator[tuple[str, list[str]]]:
    """Method by method, a text for each measure, "" where there is no figure. cell: given a row of the comparison, and whether
    it has a difference to ours to be shown."""
    found = comparison.set_index(["method", "measure"])
    for method in dict.fromkeys(comparison["method"]):
        rows = [found.loc[(method, name)] if (method, name) in found.index else None for name in names]
        yield method, ["" if row is None else cell(row, method != ours and pd.notna(row.get("difference"))) for row in rows]


def _span(row: pd.Series) -> str:
    return f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"


def _clear(row: pd.Series) -> bool:
    """Whether the interval of the difference is clear of zero."""
    return row["difference_low"] > 0 or row["difference_high"] < 0


def _over_seeds(row: pd.Series) -> str:
    """Spread over seeds, where there are several."""
    spread = row.get("over_seeds")
    return "" if pd.isna(spread) else f" ± {spread:.3f}"


def _comparison_table(comparison: pd.DataFrame, names: list[str], ours: str) -> str:
    def cell(row: pd.Series, compared: bool) -> str:
        text = f"{row['mean']:.3f}{_over_seeds(row)} <small>[{row['low']:.3f}, {row['high']:.3f}]</small>"
        if compared:
            difference = f"{row['difference']:+.3f} {_span(row)}"
            text += f"<br><small>{f'<b>{difference}</b>' if _clear(row) else difference}</small>"
        return text

    head = "".join(f"<th>{html.escape(FIGURES[name])}</th>" for name in names)
    lines = []
    for method, texts in _rows(comparison, names, ours, cell):
        cells = [f"<td>{text or '-'}</td>" for text in texts]
        lines.append(f"<tr{' class=ours' if method == ours else ''}><th>{html.escape(method)}</th>{''.join(cells)}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table><p><small>Bold: the interval is clear of zero.</small></p>"


def as_markdown(table: pd.DataFrame, comparison: pd.DataFrame, ours: str) -> str:
    """The comparison as a Markdown table: means over pairs, ± the spread over seeds, and in brackets the 95 % interval of the
    difference to ours, pair by pair, in bold where it is clear of zero. Below it, on how many pairs the true drawing wins."""
    names = [name for name in FIGURES if name in set(comparison["measure"])]

    def cell(row: pd.Series, compared: bool) -> str:
        span = f"**{_span(row)}**" if _clear(row) else _span(row)
        mean = f"{row['mean']:.3f}{_over_seeds(row)}"
        return f"{mean} {span}" if compared else mean

    lines = ["| | " + " | ".join(FIGURES[name] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for method, cells in _rows(comparison, names, ours, cell):
        shown = f"**{method}**" if method == ours else method
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _about_truth(_with_texts(table))]) + "\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Content-style benchmark</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #1e1e1e }}
table {{ border-collapse: collapse }} th, td {{ padding: .3rem .6rem; text-align: left; vertical-align: top }}
tr {{ border-bottom: 1px solid #ddd }} tr.ours {{ background: #eef6f0 }} img {{ max-width: 100% }} small {{ color: #666 }}
</style></head><body>
{body}
</body></html>
"""
