"""A library as data: its table of contents and styles, the chosen pairs, and what all of its jobs share. Free of torch."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from PIL import Image
from pydantic import ValidationError

from b4m_pipeline.common.config import faults, shown
from b4m_pipeline.common.texts import text_of
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.folders import EXTENSIONS
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, IngestionParams, PreservationParams
from b4m_pipeline.library.params import LibraryParams
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams

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
            raise LibraryError(f"{where}: unknown columns {shown(unknown)}; there are {', '.join(COLUMNS)}")
        given = {key: str(value).strip() for key, value in row.items() if value not in (None, "")}
        if missing := [key for key in REQUIRED if key not in given]:
            raise LibraryError(f"{where}: {' and '.join(missing)} must be given")
        kind: Any = given.pop("kind")
        if kind not in ("content", "style"):
            raise LibraryError(f"{where}: kind must be content or style, got {shown(kind)}")
        shared = content if kind == "content" else style
        try:
            concept = ConceptParams(**({"token": shared.token, "noun": shared.noun} | given))
        except ValidationError as error:
            raise LibraryError(f"{where}: {'; '.join(faults(error, ConceptParams))}") from error
        folder = Path(concept.path).expanduser()
        if not folder.is_dir() or not any(file.suffix.lower() in EXTENSIONS for file in folder.rglob("*")):
            raise LibraryError(f"{where}: {folder} is no folder with pictures in it")
        if any(entry.kind == kind and entry.concept.name.casefold() == concept.name.casefold() for entry in entries):
            raise LibraryError(f"{where}: there is another {kind} {concept.name!r}: give one of them another name")
        entries.append(Entry(kind, concept))
    if not entries:
        raise LibraryError(f"library.table: {path} names no content and no style")
    return entries


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and its fields."""
    try:
        text = text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise LibraryError(f"library.table: {path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix.lower() in (".yml", ".yaml"):
        try:
            rows = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise LibraryError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
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
