"""Trainings that several methods and pairs of a benchmark share: done once, kept on disk, also for the next run."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from b4m_pipeline.common.provenance import digest_of, recipe_code, recipe_libraries
from b4m_pipeline.method.adapter import Adapter, AdapterError
from b4m_pipeline.method.files import load_adapter, save_adapter

logger = logging.getLogger(__name__)

SECONDS = "seconds"
"""Metadata of an adapter on a shelf: how long its training took."""


class Shelf:
    """A folder of trained adapters, by all that they are made from, code and libraries included. reused: seconds that trainings
    took that were not done again, so that whoever measures a method can count what it would have cost by itself."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.reused = 0.0

    def take(self, train: Callable[[], Adapter], *made_from: Any) -> Adapter:
        """What `train` gives, or gave before for the same `made_from` (JSON-serialisable) and code. A damaged file is trained
        again. Raises what `train` does, and OSError if the result cannot be written."""
        code = recipe_code(), recipe_code("training/lora", "benchmark/other_methods")
        place = self.folder / digest_of(*made_from, *code, recipe_libraries())
        found = None
        if place.exists():
            try:
                found = load_adapter(place)
            except AdapterError as error:
                logger.warning("What lies in %s is trained again: %s", place, error)
        if found:
            self.reused += float(found.metadata[SECONDS])
            return found
        start = time.monotonic()
        adapter = train()
        adapter.metadata[SECONDS] = f"{time.monotonic() - start:.1f}"
        save_adapter(adapter, place)
        return adapter
