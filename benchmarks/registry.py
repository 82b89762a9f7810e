"""How long the registry's daily use takes when it holds thousands of adapters.

    python -m benchmarks.registry FOLDER [--halves 1000] [--composed 100 1000 10000]
    python -m benchmarks.registry FOLDER --database postgresql://USER@HOST/NAME --served

A content, a style and their joined pair are registered as any run registers them, in a new database; their rows are then copied
under other names as often as is asked for (the files of weights are shared). At each size every task is done several times:
the fewest seconds, how many of them the processor worked, and how many statements the database got. --served: asked through an
MLflow server on this machine, as a team does it, instead of the database itself. PostgreSQL needs the package psycopg[binary].
FOLDER must not be there yet.
"""

import argparse
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlflow
import sqlalchemy as sa
import torch
from benchmarks._adapters import random_half, tiny_frame
from benchmarks._hardware import describe
from benchmarks._models import EMBEDDED_BASE
from mlflow.store.db.base_sql_model import Base
from mlflow.store.model_registry.dbmodels import models as _registered  # noqa: F401 - their tables are Base's then
from mlflow.store.tracking.dbmodels import models as _tracked  # noqa: F401

from b4m_pipeline.common.provenance import Recipe
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.adapter import RECIPE_KEY, Adapter
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.adapters import MODEL_TAG, fetch_adapter, find_joined, find_same, register_adapter
from b4m_pipeline.registry.listing import find_adapters
from b4m_pipeline.registry.promotion import promote, roll_back
from b4m_pipeline.studio.asked import CardsRequest
from b4m_pipeline.studio.shelf import cards

CONTENT, STYLE = "originalcontent", "originalstyle"
INFERENCE = {"num_inference_steps": 20, "guidance_scale": 2.0}
_KEPT = ("artifact_uri", "artifact_location", "storage_location")
"""Columns that stay as they are in copies: where files lie."""
_BATCH = 250
Rows = list[tuple[sa.Table, list[dict[str, Any]]]]


@dataclass(frozen=True)
class Original:
    """A registered adapter: its rows in all tables, and the words in them that are its own."""

    rows: Rows
    own: dict[str, str]

    @property
    def number(self) -> int:
        return sum(len(found) for _, found in self.rows)


def register_originals(folder: Path, base_model: BaseModelParams) -> list[Adapter]:
    """A content, a style and the two joined, registered."""
    frame = tiny_frame(base_model)
    halves = []
    for seed, (kind, name) in enumerate((("content", CONTENT), ("style", STYLE))):
        save_adapter(random_half(kind, name, frame, base_model, seed), folder / kind)
        halves.append(fetch_adapter(register_adapter(folder / kind, inference=INFERENCE)["uri"]))
    save_adapter(join_halves(halves[0], halves[1], "lora_A"), folder / "joined")
    return [*halves, fetch_adapter(register_adapter(folder / "joined", inference=INFERENCE)["uri"])]


def read_original(engine: sa.Engine, adapter: Adapter) -> Original:
    """The rows that name the adapter's run, logged model or registered model."""
    name, number = adapter.metadata["registry_uri"].removeprefix("models:/").rsplit("/", 1)
    version = mlflow.MlflowClient().get_model_version(name, number)
    own = {"run": version.run_id, "model": version.tags[MODEL_TAG], "recipe": adapter.metadata[RECIPE_KEY]}
    keys, rows = (own["run"], own["model"], name), []
    with engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            texts = [column for column in table.columns if isinstance(column.type, sa.String)]
            named = sa.or_(*(column.in_(keys) for column in texts)) if texts else sa.false()
            if found := [dict(row) for row in connection.execute(sa.select(table).where(named)).mappings()]:
                rows.append((table, found))
    return Original(rows, own)


def copy_of(original: Original, words: dict[str, str], moment: int) -> Rows:
    """Its rows for another adapter. words: what stands there -> in their place; moment: ms that it is younger."""
    run, model = uuid.uuid4().hex, f"m-{uuid.uuid4().hex}"
    words = words | {original.own["run"]: run, original.own["model"]: model, original.own["recipe"]: uuid.uuid4().hex[:16]}

    def changed(column: str, value: Any) -> Any:
        if column == "input_uuid":
            return uuid.uuid4().hex
        if isinstance(value, str) and column not in _KEPT:
            for before, now in words.items():
                value = value.replace(before, now)
        return value + moment if isinstance(value, int) and "time" in column else value

    return [
        (table, [{key: changed(key, value) for key, value in row.items()} for row in rows]) for table, rows in original.rows
    ]


def fill(engine: sa.Engine, original: Original, names: list[dict[str, str]], first: int) -> None:
    """Copies of it, one for each dictionary of words. first: number of copies that are there."""
    for begin in range(0, len(names), _BATCH):
        batch = [copy_of(original, words, first + begin + at) for at, words in enumerate(names[begin : begin + _BATCH], 1)]
        with engine.begin() as connection:
            for place, (table, _) in enumerate(original.rows):
                connection.execute(table.insert(), [row for rows in batch for row in rows[place][1]])


def halves_named(kind: str, number: int) -> list[dict[str, str]]:
    return [{CONTENT if kind == "content" else STYLE: f"{kind}{at:04d}"} for at in range(number)]


def pairs_named(contents: int, styles: int) -> Iterator[dict[str, str]]:
    """Every pair, so that the first ones have many different contents."""
    for at in range(contents * styles):
        yield {CONTENT: f"content{at % contents:04d}", STYLE: f"style{(at // contents + at) % styles:04d}"}


def tasks(base: str, folder: Path) -> dict[str, Callable[[int], Any]]:
    """What is measured, by name; each is given how often it was done before."""

    def compose(turn: int) -> Adapter:
        halves = [fetch_adapter(f"models:/b4m-{kind}-{kind}{turn:04d}@candidate") for kind in ("content", "style")]
        return join_halves(halves[0], halves[1], "lora_A")

    def by_recipe(turn: int) -> Adapter | None:
        digest = mlflow.MlflowClient().get_model_version(f"b4m-content-content{turn:04d}", "1").tags[RECIPE_KEY]
        return find_same(cast(Recipe, SimpleNamespace(kind="content", name=f"content{turn:04d}", digest=digest)))

    def register(turn: int) -> Any:
        return register_adapter(folder / "joined", inference=INFERENCE)

    def page(turn: int, **asked: Any) -> Any:
        return cards(base, CardsRequest(**asked))

    pair = f"b4m-joined-{CONTENT}-{STYLE}"
    return {
        "kedro adapters (the first 100)": lambda turn: find_adapters(limit=101),
        "kedro adapters --kind style --limit 10": lambda turn: find_adapters("style", limit=11),
        "kedro adapters --concept": lambda turn: find_adapters(concept=f"style{turn:04d}", limit=101),
        "look-up by recipe": by_recipe,
        "look-up of a joined pair that is not there": lambda turn: find_joined(f"none{turn}"),
        "compose two halves by alias": compose,
        "studio: first page of the library": page,
        "studio: contents to compose": lambda turn: page(turn, kind="content", ours=True, limit=100),
        "studio: words of a name": lambda turn: page(turn, words=f"joined content{turn:04d}"),
        "studio: words that are in no name": lambda turn: page(turn, words="nowhere"),
        "register one more": register,
        "promote": lambda turn: promote(pair, str(turn + 1)),
        "roll back": lambda turn: turn and roll_back(pair),
    }


@contextmanager
def counted(statements: list[str]) -> Iterator[None]:
    """Keeps what any engine of this process is asked."""

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith("PRAGMA"):
            statements.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


def measure(work: dict[str, Callable[[int], Any]], turns: int) -> dict[str, tuple[float, float, float]]:
    """Task -> fewest seconds, fewest of this process's processor, statements of one turn; one turn is not counted."""
    found = {}
    for name, task in work.items():
        task(0)
        seconds, statements = [], list[str]()
        with counted(statements):
            for turn in range(1, turns + 1):
                begun = time.perf_counter(), time.process_time()
                task(turn)
                seconds.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        found[name] = min(own[0] for own in seconds), min(own[1] for own in seconds), len(statements) / turns
    return found


@contextmanager
def server(database: str, folder: Path) -> Iterator[str]:
    """An MLflow server on this machine, with its artifacts and its log in the folder; yields its address. Raises
    RuntimeError if it does not answer in ten minutes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "mlartifacts")]
    with (folder / "server.log").open("w", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        for _ in range(1200):
            with socket.socket() as trial:
                if (there := trial.connect_ex(("127.0.0.1", port)) == 0) or process.poll() is not None:
                    break
            time.sleep(0.5)
        if not there:
            raise RuntimeError(f"the MLflow server does not answer: {folder / 'server.log'}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def table(found: dict[int, dict[str, tuple[float, float, float]]], served: bool) -> str:
    """A row for each task, a column for each number of composed versions."""
    sizes = list(found)
    lines = [f"| | {' | '.join(f'{size:,}' for size in sizes)} |", f"|---{'|---' * len(sizes)}|"]
    for name in found[sizes[0]]:
        cells = [found[size][name] for size in sizes]
        told = [f"{wall:.2f}" + ("" if served else f" ({own:.2f}; {asked:.0f})") for wall, own, asked in cells]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--halves", type=int, default=1000, help="contents and styles together")
    parser.add_argument("--composed", type=int, nargs="+", default=[100, 1000, 10000], help="joined versions, growing")
    parser.add_argument("--database", help="an empty one  [default: sqlite in FOLDER]")
    parser.add_argument("--served", action="store_true")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True)
    folder = given.folder.resolve()
    database = given.database or f"sqlite:///{folder / 'mlflow.db'}"
    if given.served:
        with server(database, folder) as address:
            report = run(folder, database, address, given)
    else:
        report = run(folder, database, database, given)
    sys.stdout.write(report + "\n")
    return 0


def run(folder: Path, database: str, store: str, given: argparse.Namespace) -> str:
    """Fill and measure, size by size -> a report."""
    mlflow.set_tracking_uri(store)
    own = {} if given.served else {"artifact_location": str(folder / "mlartifacts")}
    mlflow.create_experiment("adapters", **own)
    mlflow.set_experiment("adapters")
    base_model = BaseModelParams(path=str(EMBEDDED_BASE), resolution=128)
    adapters = register_originals(folder, base_model)
    engine = sa.create_engine(database)
    originals = [read_original(engine, adapter) for adapter in adapters]
    side = given.halves // 2
    for original, kind in zip(originals, ("content", "style"), strict=False):
        fill(engine, original, halves_named(kind, side), 0)
    pairs, found, there = pairs_named(side, side), {}, 0
    base = find_adapters("content", limit=1)[0].base
    for size in given.composed:
        begun = time.perf_counter()
        fill(engine, originals[2], [next(pairs) for _ in range(size - there)], there)
        sys.stderr.write(f"{size - there} filled in {time.perf_counter() - begun:.0f} s\n")
        there = size
        if engine.dialect.name == "postgresql":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text("ANALYZE"))
        found[size] = measure(tasks(base, folder), given.turns)
    about = describe("cpu", torch.float32)
    what = f"{engine.dialect.name}{', through an MLflow server' if given.served else ''}, {given.halves} halves"
    unit = "seconds" if given.served else "seconds (of the processor; statements)"
    rows = f"{originals[2].number} rows an adapter; {unit} by composed versions."
    return f"{table(found, given.served)}\n\n{datetime.now(UTC):%d %B %Y}, {about['processor']}, {what}, {rows}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
