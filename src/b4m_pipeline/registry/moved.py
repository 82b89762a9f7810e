"""A project's own database after its folder was moved or copied: MLflow keeps the places of artifacts in full."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

logger = logging.getLogger(__name__)

_PLACES = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)
"""Tables and columns that hold them."""


def follow(database: Path, artifacts: Path) -> int:
    """Make the places in a project's sqlite file those beside it, if they are another folder's; returns how many rows were
    changed. artifacts: the project's folder of artifacts, of the name that it has had ever since.

    If the artifacts did not come along, only new ones go there: what was logged before is still read where it is. Raises
    sqlite3.Error.
    """
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        others = [place for (place,) in found if place and _is_elsewhere(place, artifacts)]
        if not others:
            return 0
        places = _PLACES if artifacts.is_dir() else _PLACES[:1]
        connection.execute("BEGIN IMMEDIATE")
        changed = sum(_rewrite(connection, *place, other, artifacts.as_uri()) for other in others for place in places)
        connection.execute("COMMIT")
    told = ", ".join(others)
    if artifacts.is_dir():
        logger.warning("This project was moved or copied: %d places in %s, once %s, are its own now", changed, database, told)
    else:
        logger.warning(
            "This project was copied without its artifacts: those of earlier runs stay in %s, new ones go to %s. To have all "
            "here, copy that folder, too", told, artifacts,
        )  # fmt: skip
    return changed


def _is_elsewhere(place: str, artifacts: Path) -> bool:
    """Whether it is a folder of this name on this machine, and not this one."""
    parts = urlsplit(place)
    if parts.scheme not in ("", "file") or parts.netloc:
        return False
    path = Path(url2pathname(parts.path) if parts.scheme else unquote(place))
    same = path == artifacts or (path.exists() and artifacts.exists() and os.path.samefile(path, artifacts))
    return path.name == artifacts.name and path.is_absolute() and not same


def _rewrite(connection: sqlite3.Connection, table: str, column: str, before: str, now: str) -> int:
    """Paths that begin with another folder."""
    changed = connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
    )
    return changed.rowcount
