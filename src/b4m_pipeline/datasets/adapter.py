"""Kedro dataset for an adapter on disk."""

import json
import logging
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview

from b4m_pipeline.method.adapter import WEIGHTS_NAME, Adapter

logger = logging.getLogger(__name__)

_LONGEST_SHOWN = 160  # characters of a field in the preview

UNCHANGED = "unchanged"
"""What a node gives in place of an adapter if the one on disk is to stay as it is."""


class AdapterDataset(AbstractDataset):
    """Saves and loads `b4m_pipeline.method.adapter.Adapter`; any diffusers pipeline loads the folder, too.

    Args:
        filepath: a local folder.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._folder = Path(filepath)
        self.metadata = metadata

    def save(self, data: Adapter | str) -> None:
        if isinstance(data, str):  # UNCHANGED
            return
        from b4m_pipeline.method.files import save_adapter

        save_adapter(data, self._folder)
        logger.debug("%s (%s) is in %s", data.metadata["name"], data.metadata["kind"], self._folder)

    def load(self) -> Adapter:
        from b4m_pipeline.method.files import load_adapter

        return load_adapter(self._folder)

    def preview(self) -> JSONPreview:
        """What the adapter on disk says of itself, for Kedro-Viz; long fields, such as all parameters, are left out."""
        from b4m_pipeline.method.files import load_adapter

        about = load_adapter(self._folder).metadata
        return JSONPreview(json.dumps({key: value for key, value in sorted(about.items()) if len(value) <= _LONGEST_SHOWN}))

    def _exists(self) -> bool:
        return (self._folder / WEIGHTS_NAME).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._folder.as_posix()}
