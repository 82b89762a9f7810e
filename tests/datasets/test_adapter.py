"""The dataset of an adapter on disk."""

import json

import pytest
import torch
from kedro.io import DataCatalog, DatasetError

from b4m_pipeline.datasets.adapter import UNCHANGED, AdapterDataset
from b4m_pipeline.method.adapter import WEIGHTS_NAME, AdapterError


def test_an_adapter_goes_through_the_catalog(tiny_adapter, tmp_path):
    entry = {"type": "b4m_pipeline.datasets.adapter.AdapterDataset", "filepath": str(tmp_path / "half")}
    catalog = DataCatalog.from_config({"half": entry | {"metadata": {"kedro-viz": {"layer": "models"}}}})
    assert not catalog.exists("half")
    catalog.save("half", tiny_adapter)
    assert catalog.exists("half") and (tmp_path / "half" / WEIGHTS_NAME).is_file()
    again = catalog.load("half")
    assert again.metadata == tiny_adapter.metadata
    assert all(torch.equal(again.tensors[key], value) for key, value in tiny_adapter.tensors.items())


def test_what_is_to_stay_stays_and_what_is_written_is_said(tiny_adapter, tmp_path, caplog):
    dataset = AdapterDataset(filepath=str(tmp_path / "half"))
    with caplog.at_level("DEBUG", "b4m_pipeline"):
        dataset.save(UNCHANGED)
        assert not dataset.exists()
        dataset.save(tiny_adapter)
    assert caplog.messages == [f"cup-ink (made) is in {tmp_path / 'half'}"]
    dataset.save(UNCHANGED)
    assert dataset.load().metadata == tiny_adapter.metadata


def test_what_is_not_there_is_said_by_the_adapters_own_error(tmp_path):
    dataset = AdapterDataset(filepath=str(tmp_path))
    assert str(tmp_path) in str(dataset)
    with pytest.raises(DatasetError, match="run the pipeline that trains it first") as error:
        dataset.load()
    assert isinstance(error.value.__cause__, AdapterError)


def test_kedro_viz_shows_what_it_says_of_itself(tiny_adapter, tmp_path):
    dataset = AdapterDataset(filepath=str(tmp_path))
    dataset.save(tiny_adapter)
    shown = json.loads(dataset.preview())
    assert (shown["name"], shown["kind"], shown["frame"]) == ("cup-ink", "made", tiny_adapter.metadata["frame"])
    assert "frame_config" not in shown and dataset.preview.__annotations__["return"].__name__ == "JSONPreview"
