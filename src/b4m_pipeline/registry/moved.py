"""A project's own database after its folder was moved or copied: MLflow keeps the places of artifacts in full."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

logger = logging.getLogger(__name__)

_PLACES = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)
"""Tables and columns that hold them."""


def follow(database: Path, artifacts: Path) -> int:
    """Make the places in a project's sqlite file those beside it, if they are another folder's; returns how many were changed.
    artifacts: the project's folder of artifacts, of the name that it has had ever since.

    What did not come along, and is still where it was, is read from there; new artifacts never go there. Raises sqlite3.Error.
    """
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        found = {root for table, column in _PLACES for root in _roots(connection, table, column, artifacts.name)}
        others = sorted(root for root in found if _is_elsewhere(root, artifacts))
        if not others:
            return 0
        connection.execute("BEGIN IMMEDIATE")
        changed = sum(_rewrite(connection, *place, other, artifacts.as_uri()) for other in others for place in _PLACES)
        connection.execute("COMMIT")
    if changed:
        told = ", ".join(others)
        logger.warning(
            "This project was moved or copied: %d places in %s, once in %s, are its own now", changed, database, told
        )
    return changed


def _roots(connection: sqlite3.Connection, table: str, column: str, name: str) -> set[str]:
    """Folders of this name that a column's places are, or lie in."""
    places = connection.execute(f"SELECT DISTINCT {column} FROM {table} WHERE instr({column}, ?)", (f"/{name}",))
    split = (f"{place}/".partition(f"/{name}/") for (place,) in places)
    return {f"{before}/{name}" for before, found, _ in split if found}


def _is_elsewhere(root: str, artifacts: Path) -> bool:
    """Whether it is a folder on this machine, and another one."""
    if (path := _path_of(root)) is None or not path.is_absolute() or path == artifacts:
        return False
    return not (path.exists() and artifacts.exists() and os.path.samefile(path, artifacts))


def _path_of(place: str) -> Path | None:
    """Of a path or a file: URI; None for places on servers."""
    parts = urlsplit(place)
    if parts.scheme == "file" and not parts.netloc:
        return Path(url2pathname(parts.path))
    return Path(place) if not parts.scheme else None


def _rewrite(connection: sqlite3.Connection, table: str, column: str, before: str, now: str) -> int:
    """A column's places in another folder. Those of experiments are for what comes, all others for what is there."""
    chosen = f"SELECT rowid, {column} FROM {table} WHERE {column} = ? OR instr({column}, ?) = 1"
    rows = connection.execute(chosen, (before, f"{before}/"))
    changed = 0
    for row, place in rows.fetchall():
        own = now + place.removeprefix(before)
        here, there = _path_of(own), _path_of(place)
        if table == "experiments" or (here and here.exists()) or not (there and there.exists()):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (own, row))
            changed += 1
    return changed
