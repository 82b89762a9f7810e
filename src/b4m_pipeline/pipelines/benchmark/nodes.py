"""Nodes of `benchmark`."""

import logging
from pathlib import Path

import pandas as pd
from PIL import Image

from b4m_pipeline.benchmark.params import BenchmarkParams
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, IngestionParams, PreservationParams
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams, MakeParams

logger = logging.getLogger(__name__)


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
    """Every method on every pair with each of its seeds, all nested MLflow runs; what an earlier run finished is taken from
    its folder."""
    from b4m_pipeline.benchmark import run as bench
    from b4m_pipeline.benchmark.results import References
    from b4m_pipeline.benchmark.shelf import Shelf
    from b4m_pipeline.benchmark.task import Sources, Task, prepare_pair
    from b4m_pipeline.evaluation.evaluate import find_truth
    from b4m_pipeline.inputs.captions import plain_captions
    from b4m_pipeline.inputs.counterparts import counterpart_folders
    from b4m_pipeline.inputs.encode import encode_training_set
    from b4m_pipeline.inputs.prepare import own_pictures

    bench.check_methods(benchmark)
    bench.require_equal_budgets(content_break, style_break, make)
    partners = counterpart_folders(counterparts, base_model, content, style)
    pairs = {}
    for pair in benchmark.chosen_pairs():  # all pictures are read before anything is trained
        of_run = (content, style, partners, ingestion, captioning, preservation)
        pairs[pair.name] = prepare_pair(pair, *of_run, base_model.resolution, seed)
    results, references, shelf = [], {}, Shelf(Path(benchmark.folder) / "trained")
    for place, (name, own) in enumerate(pairs.items(), start=1):
        logger.info("Pair %d of %d: %s", place, len(pairs), name)
        training_set = encode_training_set(own.prepared.manifest, own.prepared.pictures, base_model, own.preserved)
        trained = (frame, own.content, own.style, content_break, style_break, make)
        sources = Sources(own.prepared, ingestion, captioning, evaluation)
        task = Task(training_set, base_model, *trained, benchmark.competitors, seed, shelf, sources)
        truth = find_truth(evaluation, own.content.name, own.style.name, base_model.resolution)
        things = plain_captions(own_pictures(own.prepared.manifest, "style"), captioning)
        known = bench.draw_known(things, base_model, evaluation, Path(benchmark.folder) / "known", seed)
        shown = own.prepared.references("content"), own.prepared.references("style")
        references[name] = References(*shown, truth, things, known)
        results += bench.run_pair(task, references[name], benchmark, evaluation, _log_result)
        if true := bench.measure_truth(task, references[name], evaluation):
            results.append(true)
    return results, references


def _log_result(result) -> None:
    """Keep a result as a nested MLflow run."""
    from b4m_pipeline.registry.tracking import nested_run

    tags = {"pair": result.pair, "method": result.method, "seed": str(result.seed), "error": result.error or None}
    with nested_run(f"{result.pair} {result.method} {result.seed}", tags) as log:
        log({f"benchmark.{key}": value for key, value in result.figures().items()}, result.pictures)


def compare_methods(
    results: list, references: dict, benchmark: BenchmarkParams, evaluation: EvaluationParams, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Figures of each (pair, method, seed), methods' means with differences to ours, and whether measures can be believed."""
    from b4m_pipeline.benchmark.comparison import compare, table_of
    from b4m_pipeline.benchmark.validation import validate_measures

    table = table_of(results)
    return table, compare(table, benchmark.ours, seed), validate_measures(references, evaluation)


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
    from b4m_pipeline.benchmark.results import TRUE_DRAWING
    from b4m_pipeline.registry.tracking import log_picture, log_text

    drawn = [result for result in results if result.method != TRUE_DRAWING]  # the sheets show it above
    sheets = {
        pair: report.draw_sheet(pair, [result for result in drawn if result.pair == pair], own, benchmark.ours)
        for pair, own in references.items()
    }
    scatter, bars = report.draw_scatter(comparison, benchmark.ours), report.draw_bars(comparison, benchmark.ours)
    plots = {"Content against style": scatter, "Every measure": bars}
    page = report.as_html(table, comparison, validation, plots, sheets, benchmark.ours)
    log_picture(scatter, "benchmark_scatter")
    log_picture(bars, "benchmark_bars")
    log_text(page, "benchmark.html")
    return sheets, scatter, bars, page, report.as_markdown(table, comparison, benchmark.ours)
