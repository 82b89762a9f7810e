"""Kedro dataset for an encoded training set: one safetensors file, the table in its metadata."""

import io
import json
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import TablePreview

from b4m_pipeline.common.whole_files import whole_file
from b4m_pipeline.inputs.training_set import TrainingSet

_OTHERS = "others."


class TrainingSetDataset(AbstractDataset):
    """Saves and loads `b4m_pipeline.inputs.training_set.TrainingSet` without pickle.

    Args:
        filepath: a local .safetensors file.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def save(self, data: TrainingSet) -> None:
        from safetensors.torch import save_file

        header = {"table": data.table.to_json(orient="split"), "encoder": data.encoder, "others": json.dumps(data.others)}
        tensors = data.tensors | {_OTHERS + key: tensor for key, tensor in data.other_tensors.items()}
        with whole_file(Path(self._filepath), sole=True) as own:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, own, metadata=header)

    def load(self) -> TrainingSet:
        from safetensors import SafetensorError, safe_open

        try:
            # Tensors are copied: as parts of the mapped file they would keep Windows from replacing it.
            with safe_open(str(self._filepath), framework="pt") as handle:
                header = handle.metadata()
                tensors = {key: handle.get_tensor(key).clone() for key in handle.keys()}
            others = json.loads(header["others"])
            if not isinstance(others, list):
                raise TypeError("it does not say what its prompts name")
            other_tensors = {key.removeprefix(_OTHERS): tensors.pop(key) for key in list(tensors) if key.startswith(_OTHERS)}
            table = pd.read_json(io.StringIO(header["table"]), orient="split", dtype=False)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{self._filepath} is damaged ({error}): run the ingestion pipeline again") from error
        return TrainingSet(table, tensors, header["encoder"], others, other_tensors)

    def preview(self, nrows: int = 20) -> TablePreview:
        """The first rows of the table, for Kedro-Viz; the tensors are not read."""
        from safetensors import safe_open

        with safe_open(str(self._filepath), framework="pt") as handle:
            table = pd.read_json(io.StringIO(handle.metadata()["table"]), orient="split", dtype=False)
        return TablePreview(json.loads(table.head(nrows).to_json(orient="split")))

    def _exists(self) -> bool:
        return Path(self._filepath).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
