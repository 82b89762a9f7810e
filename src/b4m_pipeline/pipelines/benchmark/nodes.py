"""Nodes of `benchmark`."""

import logging
from pathlib import Path

import pandas as pd
from PIL import Image

from b4m_pipeline.common.config import (
    BaseModelParams,
    BenchmarkParams,
    BreakParams,
    CaptioningParams,
    ConceptParams,
    CounterpartParams,
    EvaluationParams,
    FrameParams,
    IngestionParams,
    MakeParams,
    PairParams,
    PreservationParams,
)

logger = logging.getLogger(__name__)


def concepts_of(
    pair: PairParams, content: ConceptParams, style: ConceptParams, counterparts: CounterpartParams
) -> tuple[ConceptParams, ConceptParams, CounterpartParams]:
    """The pair's concepts with the run's tokens and nouns, and the counterparts less those that the pair itself is about."""
    pair_content = ConceptParams(path=pair.content, token=content.token, noun=content.noun, name="")
    pair_style = ConceptParams(path=pair.style, token=style.token, noun=style.noun, name="")
    own = {Path(pair.content).resolve(), Path(pair.style).resolve()}
    kept = {
        field: [concept for concept in getattr(counterparts, field) if Path(concept.path).resolve() not in own]
        for field in ("contents", "styles")
    }
    return pair_content, pair_style, CounterpartParams(**kept)


def run_benchmark(
    benchmark: BenchmarkParams,
    content: ConceptParams,
    style: ConceptParams,
    counterparts: CounterpartParams,
    base_model: BaseModelParams,
    frame: FrameParams,
    content_break: BreakParams,
    style_break: BreakParams,
    make: MakeParams,
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    preservation: PreservationParams,
    evaluation: EvaluationParams,
    seed: int,
) -> tuple[list, dict]:
    """Every method on every pair, each a nested MLflow run; what an earlier run finished is taken from its folder."""
    from b4m_pipeline.benchmark import run as bench
    from b4m_pipeline.benchmark.methods import Task
    from b4m_pipeline.benchmark.shelf import Shelf
    from b4m_pipeline.evaluation.evaluate import find_truth
    from b4m_pipeline.inputs.captioning import add_variants, caption_manifest, preserved_prompts
    from b4m_pipeline.inputs.folders import check_folders, list_folders, load_picture
    from b4m_pipeline.inputs.looks import add_content_looks
    from b4m_pipeline.inputs.training_set import encode_training_set
    from b4m_pipeline.registry.tracking import nested_run

    bench.check_methods(benchmark)
    bench.require_equal_budgets(content_break, style_break, make)
    prepared = {}
    for pair in benchmark.chosen_pairs():  # all pictures are read before anything is trained
        own_content, own_style, partners = concepts_of(pair, content, style, counterparts)
        checked = check_folders(list_folders(own_content, own_style, partners, None), base_model.resolution, ingestion)
        others = preserved_prompts(preservation, own_content, own_style, partners, seed)
        prepared[pair.name] = (own_content, own_style, checked, others)
    results, references, shelf = [], {}, Shelf(Path(benchmark.folder) / "trained")
    for name, (own_content, own_style, checked, others) in prepared.items():
        manifest = caption_manifest(checked.manifest, checked.squares, captioning)
        shown, pictures = add_content_looks(manifest, checked.squares, ingestion)
        shown = add_variants(shown, captioning, own_style.token)
        training_set = encode_training_set(shown, pictures, base_model, others)
        trained = (frame, own_content, own_style, content_break, style_break, make)
        task = Task(training_set, base_model, *trained, benchmark.competitors, seed, shelf)
        squares = {
            kind: [load_picture(checked.squares[key]) for key in manifest.loc[manifest["role"] == kind, "picture"]]
            for kind in ("content", "style")
        }
        truth = find_truth(evaluation, own_content.name, own_style.name, base_model.resolution)
        references[name] = bench.References(squares["content"], squares["style"], truth)

        def report(result: bench.Result) -> None:
            tags = {"pair": result.pair, "method": result.method, "error": result.error or None}
            with nested_run(f"{result.pair} {result.method}", tags) as log:
                log({f"benchmark.{key}": value for key, value in result.figures().items()}, result.pictures)

        results += bench.run_pair(task, references[name], benchmark, evaluation, report)
        if true := bench.measure_truth(name, references[name], evaluation):
            results.append(true)
    return results, references


def compare_methods(
    results: list, references: dict, benchmark: BenchmarkParams, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Figures of each (pair, method), methods' means with differences to ours, and whether the measures can be believed."""
    from b4m_pipeline.benchmark import run as bench

    table = bench.table_of(results)
    return table, bench.compare(table, benchmark.ours, seed), bench.validate_measures(references)


def report_benchmark(
    results: list,
    references: dict,
    table: pd.DataFrame,
    comparison: pd.DataFrame,
    validation: pd.DataFrame,
    benchmark: BenchmarkParams,
) -> tuple[dict[str, Image.Image], Image.Image, Image.Image, str, str]:
    """Contact sheets by pair, content against style, bars, all of it as one HTML page, and the comparison as Markdown."""
    from b4m_pipeline.benchmark import report
    from b4m_pipeline.benchmark import run as bench
    from b4m_pipeline.registry.tracking import log_picture, log_text

    drawn = [result for result in results if result.method != bench.TRUE_DRAWING]  # the sheets show it above
    sheets = {
        pair: report.draw_sheet(pair, [result for result in drawn if result.pair == pair], own)
        for pair, own in references.items()
    }
    scatter, bars = report.draw_scatter(comparison, benchmark.ours), report.draw_bars(comparison, benchmark.ours)
    plots = {"Content against style": scatter, "Every measure": bars}
    page = report.as_html(table, comparison, validation, plots, sheets, benchmark.ours)
    log_picture(scatter, "benchmark_scatter")
    log_picture(bars, "benchmark_bars")
    log_text(page, "benchmark.html")
    return sheets, scatter, bars, page, report.as_markdown(comparison, benchmark.ours)
