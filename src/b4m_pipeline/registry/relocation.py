"""A project's own sqlite store after the project was moved or copied: MLflow keeps the places of artifacts in full, and would
look for them, and write new ones, where the project was before."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

logger = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
"""Folder of artifacts beside the store."""
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(database: Path) -> None:
    """Let the store in a sqlite file name the artifacts beside it, where it names those in a folder of the same name that lay
    beside it before. All at once or not at all; other places stay as they are."""
    here = database.with_name(ARTIFACTS)
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        known = {table for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        places = [place for place in _PLACES if place[0] in known]
        locations = [row[0] for row in store.execute("SELECT artifact_location FROM experiments")] if places else []
        for before in {_folder(location) for location in locations if location} - {here}:
            if before.name != ARTIFACTS:
                continue
            for table, column in places:
                for old, new in ((before.as_uri(), here.as_uri()), (str(before), str(here))):
                    store.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 (names are ours)
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
            logger.warning("This project was in %s before: MLflow's artifacts are looked for in %s now", before.parent, here)


def _folder(location: str) -> Path:
    """Of a path or a file's URI. Anything else is no folder of this name."""
    parts = urlparse(location)
    return Path(unquote(parts.path) if parts.scheme == "file" else location)
