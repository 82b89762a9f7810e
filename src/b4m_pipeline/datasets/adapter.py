"""Kedro dataset for an adapter on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset

if TYPE_CHECKING:
    from b4m_pipeline.method.adapter import Adapter

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # as in b4m_pipeline.method.adapter, which imports torch


class AdapterDataset(AbstractDataset):
    """Saves and loads `b4m_pipeline.method.adapter.Adapter`; any diffusers pipeline loads the folder, too.

    Args:
        filepath: a local folder.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._folder = Path(filepath)
        self.metadata = metadata

    def save(self, data: "Adapter") -> None:
        from b4m_pipeline.method.adapter import save_adapter

        save_adapter(data, self._folder)

    def load(self) -> "Adapter":
        from b4m_pipeline.method.adapter import load_adapter

        return load_adapter(self._folder)

    def _exists(self) -> bool:
        return (self._folder / WEIGHTS_NAME).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._folder.as_posix()}
