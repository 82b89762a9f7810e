"""The dataset that keeps an adapter on disk and in the registry."""

import json
from pathlib import Path

import mlflow
import pytest
import torch
from kedro.io import DatasetError

from b4m_pipeline.datasets.adapter import AdapterDataset
from b4m_pipeline.datasets.registry import RegisteredAdapterDataset
from b4m_pipeline.method.adapter import URI_KEY, AdapterError
from b4m_pipeline.registry.adapters import RECORD_NAME, adapter_uri

INFERENCE = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture
def dataset(tmp_path: Path) -> RegisteredAdapterDataset:
    return RegisteredAdapterDataset(filepath=str(tmp_path / "made"), save_args={"inference": INFERENCE})


def test_save_registers_a_version_with_alias_lineage_and_record(dataset, tiny_adapter, tracking, tmp_path) -> None:
    with mlflow.start_run() as run:
        dataset.save(tiny_adapter)
    version = tracking.get_model_version_by_alias("b4m-make-cup-ink", "candidate")
    assert version.run_id == run.info.run_id
    assert version.tags["frame"] == tiny_adapter.metadata["frame"]
    assert version.tags["data_digest"] == tiny_adapter.metadata["data_digest"]
    assert "params" not in version.tags
    model = tracking.get_logged_model(version.tags["model_id"])
    assert model.params == {"train.steps": "2", "seed": "0"}
    record = json.loads((tmp_path / "made" / RECORD_NAME).read_text())
    assert record["uri"] == "models:/b4m-make-cup-ink/1" == adapter_uri(tmp_path / "made")
    assert record["run_id"] == run.info.run_id


def test_saving_again_moves_the_alias_to_a_new_version(dataset, tiny_adapter, tracking) -> None:
    dataset.save(tiny_adapter)
    dataset.save(tiny_adapter)
    assert tracking.get_model_version_by_alias("b4m-make-cup-ink", "candidate").version == 2
    runs = {tracking.get_model_version("b4m-make-cup-ink", str(n)).run_id for n in (1, 2)}
    assert len(runs) == 2  # each in a run of its own, as none was active
    assert all(tracking.get_run(run).info.status == "FINISHED" for run in runs)


def test_a_loaded_adapter_says_which_version_it_is(dataset, tiny_adapter, tracking) -> None:
    dataset.save(tiny_adapter)
    loaded = dataset.load()
    assert loaded.metadata.pop(URI_KEY) == "models:/b4m-make-cup-ink/1"
    assert loaded.metadata == tiny_adapter.metadata
    assert all(torch.equal(loaded.tensors[key], value) for key, value in tiny_adapter.tensors.items())


def test_a_short_trainings_version_is_a_trial_also_when_it_is_reused(tiny_adapter, tracking, tmp_path) -> None:
    trial = {"alias": "trial", "break_steps": 200, "make_steps": 75}
    dataset = RegisteredAdapterDataset(filepath=str(tmp_path / "made"), save_args={"alias": "candidate", "trial": trial})
    dataset.save(tiny_adapter)
    dataset.save(dataset.load())
    assert tracking.get_registered_model("b4m-make-cup-ink").aliases == {"trial": 1}


def test_changed_weights_are_not_taken_for_the_registered_ones(dataset, tiny_adapter, tracking, tmp_path) -> None:
    dataset.save(tiny_adapter)
    tiny_adapter.tensors = {key: value + 1 for key, value in tiny_adapter.tensors.items()}
    AdapterDataset(filepath=str(tmp_path / "made")).save(tiny_adapter)
    assert adapter_uri(tmp_path / "made") is None
    assert URI_KEY not in dataset.load().metadata


def test_without_local_weights_it_loads_the_configured_version(dataset, tiny_adapter, tracking, tmp_path) -> None:
    dataset.save(tiny_adapter)
    uri = "models:/b4m-make-cup-ink@candidate"
    elsewhere = RegisteredAdapterDataset(filepath=str(tmp_path / "elsewhere"), load_args={"model_uri": uri})
    assert elsewhere.exists()
    loaded = elsewhere.load()
    assert loaded.metadata[URI_KEY] == "models:/b4m-make-cup-ink/1"
    assert loaded.modules() == tiny_adapter.modules()
    absent = RegisteredAdapterDataset(filepath=str(tmp_path / "x"), load_args={"model_uri": "models:/nobody@candidate"})
    assert not absent.exists()
    unnamed = RegisteredAdapterDataset(filepath=str(tmp_path / "x"))
    assert not unnamed.exists()
    with pytest.raises(DatasetError) as error:
        unnamed.load()
    assert isinstance(error.value.__cause__, AdapterError)


def test_kedro_describes_and_finds_it(dataset, tiny_adapter, tmp_path) -> None:
    assert str(tmp_path) in str(dataset)
    assert not dataset.exists()
