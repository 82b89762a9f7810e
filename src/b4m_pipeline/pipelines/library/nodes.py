"""Nodes of `library`."""

import logging
from contextlib import suppress
from pathlib import Path

import pandas as pd
from PIL import Image

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, IngestionParams, PreservationParams
from b4m_pipeline.library.params import LibraryParams
from b4m_pipeline.library.table import Composed, Entry, LibraryError, Settings, Trained, choose_pairs, read_table
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams

logger = logging.getLogger(__name__)

_PAIRS_OF_A_JOB = 32
"""At most: many enough that loading the base model is little beside them, few enough to be done again if a worker dies."""


def read_library(
    library: LibraryParams,
    content: ConceptParams,
    style: ConceptParams,
    counterparts: CounterpartParams,
    base_model: BaseModelParams,
    frame: FrameParams,
    content_break: BreakParams,
    style_break: BreakParams,
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    preservation: PreservationParams,
    evaluation: EvaluationParams,
    seed: int,
    checkpoints: str,
    reuse: bool,
    encoding_cache: str | None,
) -> tuple[list[Entry], list[tuple[str, str]], Settings]:
    """The table's entries, the pairs to compose, and what all jobs share; what can be known to be wrong is said here.
    Counterparts that the base model draws are drawn here, once for all jobs."""
    import mlflow

    from b4m_pipeline.inputs.counterparts import counterpart_folders
    from b4m_pipeline.library import fan_out

    entries = read_table(library, content, style)
    pairs = choose_pairs(entries, library)
    tracking = {}
    if run := mlflow.active_run():
        tracking = {"uri": mlflow.get_tracking_uri(), "experiment": run.info.experiment_id, "run": run.info.run_id}
        fan_out.check_store(tracking["uri"], library.ray)
    if library.ray:
        fan_out.start_ray(library.ray)
    breaks, tokens = {"content": content_break, "style": style_break}, {"content": content.token, "style": style.token}
    partners = counterpart_folders(counterparts, base_model, content, style)
    trained = (base_model, frame, breaks, tokens, partners, ingestion, captioning, preservation)
    where = (str(Path.cwd()), tracking)
    return entries, pairs, Settings(*trained, evaluation, library, seed, checkpoints, reuse, encoding_cache, *where)


def train_library(entries: list[Entry], settings: Settings) -> tuple[list[Trained], pd.DataFrame]:
    """Every half that is not in the registry yet, each a job; what could not be trained is in the table with its error."""
    from b4m_pipeline.library.fan_out import run_jobs
    from b4m_pipeline.library.jobs import train_entry

    def lost(entry: Entry, reason: str) -> Trained:
        return Trained(entry.kind, entry.concept.name, error=reason)

    trained = run_jobs(train_entry, entries, settings, settings.library.ray, lost)
    return trained, pd.DataFrame([vars(result) for result in trained]).round({"seconds": 1})


def compose_library(
    entries: list[Entry], pairs: list[tuple[str, str]], trained: list[Trained], settings: Settings
) -> tuple[list[Composed], pd.DataFrame]:
    """Every chosen pair of halves that are there: joined, registered, drawn and measured; and a table of them, a row a
    pair: content_name, style_name, uri, error, and the figures of `evaluation.measure`, of which content and style are two."""
    from b4m_pipeline.library.fan_out import run_jobs
    from b4m_pipeline.library.jobs import compose_pairs

    by_name = {(entry.kind, entry.concept.name): entry for entry in entries}
    uris = {(result.kind, result.name): result.uri for result in trained}
    ready = [
        (by_name["content", content], uris["content", content], by_name["style", style], uris["style", style])
        for content, style in pairs
        if uris["content", content] and uris["style", style]
    ]
    ray = settings.library.ray
    share = min(_PAIRS_OF_A_JOB, max(1, -(-len(ready) // ray.workers))) if ray else max(1, len(ready))
    chunks = [ready[start : start + share] for start in range(0, len(ready), share)]

    def lost(chunk, reason: str) -> list[Composed]:
        return [Composed(content.concept.name, style.concept.name, error=reason) for content, _, style, _ in chunk]

    composed = [pair for part in run_jobs(compose_pairs, chunks, settings, ray, lost) for pair in part]
    rows = []
    for pair in composed:
        figures = {} if pair.measured is None else pair.measured.select_dtypes("number").drop(columns="seed").mean().dropna()
        names = {"content_name": pair.content, "style_name": pair.style}  # content and style themselves are figures
        rows.append(names | {"uri": pair.uri, "error": pair.error} | dict(figures))
    return composed, pd.DataFrame(rows, columns=None if rows else ["content_name", "style_name", "uri", "error"]).round(4)


def show_library(entries: list[Entry], composed: list[Composed], settings: Settings) -> Image.Image:
    """All pairs as a grid, which also goes to MLflow."""
    from b4m_pipeline.inputs.folders import PicturesError
    from b4m_pipeline.library.jobs import references_of
    from b4m_pipeline.library.sheet import draw_grid
    from b4m_pipeline.registry.tracking import log_picture

    first = {}
    for entry in entries:
        with suppress(PicturesError):  # its own training has said what is wrong with it
            first[entry.name] = references_of(entry, settings)[0]
    sheet = draw_grid(composed, first)
    log_picture(sheet, "library")
    return sheet


def require_all(trained: list[Trained], composed: list[Composed], sheet: Image.Image) -> None:
    """Raise LibraryError if something failed, now that everything else is done and kept."""
    failed = [f"{result.kind} {result.name}: {result.error}" for result in trained if result.error]
    failed += [f"pair {pair.name}: {pair.error}" for pair in composed if pair.error]
    if failed:
        raise LibraryError(
            f"{len(failed)} of the library could not be made, the rest is registered; mend it and give the command again: "
            + "; ".join(failed)
        )
