"""A library of halves: N contents and M styles are trained once each, and any content goes with any style.

The jobs here are functions of plain data, so that they run in this process or on another machine (see fan_out.py). All contents
of a library share one token, and all styles another: a pair has one of each, and contents' halves have met the style's token.
"""

import csv
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from b4m_pipeline.common.config import (
    BaseModelParams,
    BreakParams,
    CaptioningParams,
    ConceptParams,
    CounterpartParams,
    EvaluationParams,
    FrameParams,
    IngestionParams,
    LibraryParams,
    PreservationParams,
)
from b4m_pipeline.common.sheets import in_cell
from b4m_pipeline.datasets.registry import fetch_adapter, find_known, find_trained, keep_registered, register_adapter
from b4m_pipeline.evaluation.contact_sheet import CELL, GAP, LABEL
from b4m_pipeline.evaluation.evaluate import Shot, draw, fill_prompt, find_truth, measure, words_of
from b4m_pipeline.inputs.captioning import add_variants, caption_manifest, preserved_prompts
from b4m_pipeline.inputs.folders import EXTENSIONS, check_folders, list_concept_folders, load_picture
from b4m_pipeline.inputs.looks import add_content_looks
from b4m_pipeline.inputs.training_set import encode_training_set
from b4m_pipeline.method.adapter import save_adapter
from b4m_pipeline.registry.tracking import MetricLogger, log_metrics, log_picture
from b4m_pipeline.training import stages

logger = logging.getLogger(__name__)

COLUMNS = ("kind", "path", "name", "noun", "licence", "source")
REQUIRED = ("kind", "path")
Kind = Literal["content", "style"]


class LibraryError(ValueError):
    """A library's table is wrong, or something of it could not be trained."""


@dataclass(frozen=True)
class Entry:
    """One row of the table: a content or a style to be trained."""

    kind: Kind
    concept: ConceptParams

    @property
    def name(self) -> str:
        return f"{self.kind} {self.concept.name}"


@dataclass(frozen=True)
class Settings:
    """What all jobs of a library share. Plain data: it travels to other processes and machines."""

    base_model: BaseModelParams
    frame: FrameParams
    breaks: dict[Kind, BreakParams]
    tokens: dict[Kind, str]
    counterparts: CounterpartParams
    ingestion: IngestionParams
    captioning: CaptioningParams
    preservation: PreservationParams
    evaluation: EvaluationParams
    library: LibraryParams
    seed: int
    checkpoints: str
    reuse: bool
    encoding_cache: str | None
    folder: str
    """The project's: what relative paths start from."""
    tracking: dict[str, str] = field(default_factory=dict)
    """uri of the MLflow store, experiment's id, id of the parent run; empty: none."""


@dataclass(frozen=True)
class Trained:
    """What became of an entry: its version in the registry, or why there is none."""

    kind: Kind
    name: str
    uri: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass
class Composed:
    """A pair: its joined adapter's version, its pictures, a row of figures for each, or why there is nothing."""

    content: str
    style: str
    uri: str = ""
    pictures: list[Image.Image] = field(default_factory=list, repr=False)
    measured: pd.DataFrame | None = field(default=None, repr=False)
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.content}-{self.style}"


def read_table(params: LibraryParams, content: ConceptParams, style: ConceptParams) -> list[Entry]:
    """The table's rows (CSV with a header, or a YAML list of mappings). content, style: whose tokens and nouns hold for all.

    Raises LibraryError, naming the line, for unknown columns, kinds and names, names that come twice and folders that are not
    there or hold no pictures: before anything is trained.
    """
    path = Path(params.table).expanduser()
    entries: list[Entry] = []
    for where, row in _rows(path):
        if unknown := [key for key in row if key not in COLUMNS]:
            raise LibraryError(f"{where}: unknown columns {unknown}; there are {', '.join(COLUMNS)}")
        given = {key: str(value).strip() for key, value in row.items() if value not in (None, "")}
        if missing := [key for key in REQUIRED if key not in given]:
            raise LibraryError(f"{where}: {' and '.join(missing)} must be given")
        kind = given.pop("kind")
        if kind not in ("content", "style"):
            raise LibraryError(f"{where}: kind must be content or style, got {kind!r}")
        shared = content if kind == "content" else style
        try:
            concept = ConceptParams(**({"token": shared.token, "noun": shared.noun} | given))
        except ValidationError as error:
            raise LibraryError(f"{where}: {'; '.join(problem['msg'] for problem in error.errors())}") from error
        folder = Path(concept.path).expanduser()
        if not folder.is_dir() or not any(file.suffix.lower() in EXTENSIONS for file in folder.rglob("*")):
            raise LibraryError(f"{where}: {folder} is no folder with pictures in it")
        if any(entry.kind == kind and entry.concept.name == concept.name for entry in entries):
            raise LibraryError(f"{where}: there is another {kind} {concept.name!r}: give one of them another name")
        entries.append(Entry(kind, concept))
    if not entries:
        raise LibraryError(f"library.table: {path} names no content and no style")
    return entries


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and its fields."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LibraryError(f"library.table: {path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix.lower() in (".yml", ".yaml"):
        try:
            rows = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise LibraryError(f"{path} is no YAML: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LibraryError(f"{path} must be a list of mappings with {', '.join(COLUMNS)}")
        yield from ((f"{path}, entry {number}", row) for number, row in enumerate(rows, start=1))
        return
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise LibraryError(f"{where}: more fields than the header has columns")
            yield where, row
    except csv.Error as error:
        raise LibraryError(f"{path}, line {reader.line_num}: {error}") from error


def choose_pairs(entries: Iterable[Entry], params: LibraryParams) -> list[tuple[str, str]]:
    """(content, style) names to compose. Raises LibraryError for a pair of something that the table does not have, and for two
    pairs that would have one name."""
    names = {kind: [entry.concept.name for entry in entries if entry.kind == kind] for kind in ("content", "style")}
    if params.pairs == "none":
        return []
    if params.pairs == "all":
        pairs = [(content, style) for content in names["content"] for style in names["style"]]
    else:
        pairs = [(pair.content, pair.style) for pair in params.pairs]
    joined: dict[str, tuple[str, str]] = {}
    for content, style in pairs:
        for kind, name in (("content", content), ("style", style)):
            if name not in names[kind]:
                raise LibraryError(f"library.pairs: the table has no {kind} {name!r}; it has {names[kind]}")
        other = joined.setdefault(f"{content}-{style}", (content, style))
        if other != (content, style):
            raise LibraryError(
                f"library.table: the pairs {other} and {(content, style)} would both be called {content}-{style}: give one of "
                "these concepts another name"
            )
    return pairs


def train_entry(entry: Entry, settings: Settings) -> Trained:
    """Train one half and register it, in an MLflow run of its own; one that the registry has from the same pictures, parameters
    and code is not trained again. An error ends in the result: other jobs go on."""
    begun = time.monotonic()
    try:
        with _at_home(settings), _run(settings, entry.name):
            uri = _train(entry, settings)
    except Exception as error:  # one wrong folder or a full disk must not take the others' hours with it
        logger.exception("%s could not be trained", entry.name)
        return Trained(entry.kind, entry.concept.name, error=_one_line(error))
    return Trained(entry.kind, entry.concept.name, uri, time.monotonic() - begun)


def _train(entry: Entry, settings: Settings) -> str:
    other: Kind = "style" if entry.kind == "content" else "content"
    own = Path(entry.concept.path).expanduser().resolve()
    partners = CounterpartParams(
        **{
            kinds: [partner for partner in getattr(settings.counterparts, kinds) if Path(partner.path).resolve() != own]
            for kinds in ("contents", "styles")
        }
    )
    folders = list_concept_folders(entry.kind, entry.concept, getattr(partners, f"{other}s"))
    checked = check_folders(folders, settings.base_model.resolution, settings.ingestion)
    manifest = caption_manifest(checked.manifest, checked.squares, settings.captioning)
    manifest, pictures = add_content_looks(manifest, checked.squares, settings.ingestion)
    manifest = add_variants(manifest, settings.captioning, settings.tokens["style"])
    tokens = {kind: entry.concept.model_copy(update={"token": token}) for kind, token in settings.tokens.items()}
    others = preserved_prompts(settings.preservation, tokens["content"], tokens["style"], settings.counterparts, settings.seed)
    training_set = encode_training_set(manifest, pictures, settings.base_model, others, settings.encoding_cache)
    checkpoint = Path(settings.checkpoints) / f"{entry.kind}_break-{entry.concept.name}.safetensors"
    with MetricLogger(f"{entry.kind}_break") as log:
        half, _ = stages.train_half(
            entry.kind,
            training_set,
            settings.base_model,
            settings.frame,
            entry.concept,
            settings.breaks[entry.kind],
            settings.seed,
            checkpoint,
            log,
            find_known(settings.reuse),
            log_picture,
        )
    folder = Path(settings.library.folder) / f"{entry.kind}-{entry.concept.name}"
    return _register(half, folder, settings)


def _register(adapter, folder: Path, settings: Settings) -> str:
    """Write the adapter, and register it unless the registry has it already; returns its version."""
    save_adapter(adapter, folder)
    if uri := adapter.metadata.get("registry_uri"):
        keep_registered(folder, uri, settings.library.alias)
        return uri
    drawn = {"num_inference_steps": settings.evaluation.steps, "guidance_scale": settings.evaluation.guidance_scale}
    return register_adapter(folder, alias=settings.library.alias, prefix=settings.library.prefix, inference=drawn)["uri"]


def compose_pairs(pairs: list[tuple[Entry, str, Entry, str]], settings: Settings) -> list[Composed]:
    """Join halves, given with their versions in the registry, register the result, draw the first prompt with every pair and
    measure it. The base model is loaded once for all. No training."""
    results, adapters, shots = [], {}, []
    with _at_home(settings):
        halves = {}
        for content, content_uri, style, style_uri in pairs:
            result = Composed(content.concept.name, style.concept.name)
            results.append(result)
            try:
                for uri in (content_uri, style_uri):
                    if uri not in halves:
                        halves[uri] = fetch_adapter(uri)
                joined = stages.join_halves(halves[content_uri], halves[style_uri], settings.frame)
                recipe = joined.metadata.get(stages.RECIPE_KEY)
                if settings.reuse and recipe and (found := find_trained("reconstructed", recipe)):
                    joined = found
                with _run(settings, f"pair {result.name}"):
                    result.uri = _register(joined, Path(settings.library.folder) / f"pair-{result.name}", settings)
            except Exception as error:  # as in train_entry
                logger.exception("%s could not be composed", result.name)
                result.error = _one_line(error)
                continue
            adapters[result.name] = joined
            shots += _shots(result.name, content.concept, style.concept, settings)
        drawn = draw(shots, adapters, settings.base_model, settings.evaluation) if shots else {}
        squares: dict[str, list[Image.Image]] = {}
        for result, (content, _, style, _) in zip(results, pairs, strict=True):
            if result.error:
                continue
            own = [shot for shot in shots if shot.system == result.name]
            result.pictures = [drawn[shot.key] for shot in own]
            for entry in (content, style):
                if entry.name not in squares:
                    squares[entry.name] = references_of(entry, settings)
            result.measured = _measure(result, own, squares[content.name], squares[style.name], settings)
    return results


def references_of(entry: Entry, settings: Settings) -> list[Image.Image]:
    """An entry's pictures as they are trained on."""
    folders = list_concept_folders(entry.kind, entry.concept, [])
    checked = check_folders(folders, settings.base_model.resolution, settings.ingestion)
    return [load_picture(picture) for picture in checked.squares.values()]


def _shots(system: str, content: ConceptParams, style: ConceptParams, settings: Settings) -> list[Shot]:
    template = settings.evaluation.prompts[0]
    prompt = fill_prompt(template, {"content": content.token, "style": style.token}, content.noun)
    plain = fill_prompt(template, {"content": words_of(content.name), "style": words_of(style.name)}, content.noun)
    seeds = range(settings.seed, settings.seed + settings.evaluation.samples)
    return [Shot(system, "composition", prompt, plain, seed) for seed in seeds]


def _measure(
    result: Composed, shots: list[Shot], content: list[Image.Image], style: list[Image.Image], settings: Settings
) -> pd.DataFrame:
    """Figures of a pair's pictures; their means go to the pair's version in the registry."""
    params = settings.evaluation
    truth = find_truth(params, result.content, result.style, settings.base_model.resolution)
    samples = pd.DataFrame([{"picture": shot.key, **vars(shot)} for shot in shots])
    pictures = dict(zip(samples["picture"], result.pictures, strict=True))
    measured = measure(samples, pictures, content, style, truth, params)
    means = measured.select_dtypes("number").drop(columns="seed").mean().dropna()
    with _run(settings, f"figures {result.name}"):
        log_metrics({f"library.{name}": float(value) for name, value in means.items()}, result.uri)
        for index, picture in enumerate(result.pictures):
            log_picture(picture, f"{result.name}-{index}")
    return measured


def draw_grid(composed: list[Composed], references: dict[str, Image.Image]) -> Image.Image:
    """Contents down, styles across, one picture of each pair; at the borders one picture of each concept (by Entry.name)."""
    contents, styles = (list(dict.fromkeys(getattr(pair, kind) for pair in composed)) for kind in ("content", "style"))
    pitch, pen_font = CELL + GAP, ImageFont.load_default(12)
    sheet = Image.new("RGB", (LABEL + (len(styles) + 1) * pitch + GAP, 24 + (len(contents) + 1) * pitch + GAP), "white")
    pen = ImageDraw.Draw(sheet)

    def put(picture: Image.Image | None, row: int, column: int) -> None:
        if picture is not None:
            sheet.paste(in_cell(picture, CELL), (LABEL + column * pitch, 24 + row * pitch))

    for column, style in enumerate(styles, start=1):
        pen.text((LABEL + column * pitch, 6), style, fill="black", font=pen_font)
        put(references.get(f"style {style}"), 0, column)
    for row, content in enumerate(contents, start=1):
        pen.text((GAP, 24 + row * pitch + CELL // 2), content, fill="black", font=pen_font)
        put(references.get(f"content {content}"), row, 0)
    for pair in composed:
        put(pair.pictures[0] if pair.pictures else None, contents.index(pair.content) + 1, styles.index(pair.style) + 1)
    return sheet


@contextmanager
def _at_home(settings: Settings) -> Iterator[None]:
    """Work in the project's folder, wherever this process was started, and with its MLflow store."""
    import mlflow

    if not Path(settings.folder).is_dir():
        raise LibraryError(f"this machine has no folder {settings.folder}: workers need the project and its data at one path")
    before, uri = Path.cwd(), mlflow.get_tracking_uri()
    os.chdir(settings.folder)
    if settings.tracking:
        mlflow.set_tracking_uri(settings.tracking["uri"])
    try:
        yield
    finally:
        os.chdir(before)
        mlflow.set_tracking_uri(uri)


@contextmanager
def _run(settings: Settings, name: str) -> Iterator[None]:
    """An MLflow run under the library's; without one, work goes on unlogged."""
    import mlflow

    if not settings.tracking:
        yield
        return
    about = settings.tracking
    with mlflow.start_run(run_name=name, experiment_id=about["experiment"], parent_run_id=about["run"], nested=True):
        yield


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
