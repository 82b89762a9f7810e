"""An encoded training set goes to disk and comes back."""

import dataclasses

import pytest
import torch
from kedro.io import DatasetError

from b4m_pipeline.datasets.training_set import TrainingSetDataset


def test_round_trip_with_prompts_that_have_no_pictures(tiny_training_set, tmp_path):
    others = ["a cat", "a dog"]
    data = dataclasses.replace(
        tiny_training_set,
        others=others,
        other_tensors={key: value[:2].clone() for key, value in tiny_training_set.tensors.items() if "prompt" in key},
    )
    dataset = TrainingSetDataset(filepath=str(tmp_path / "deep" / "set.safetensors"))
    assert not dataset.exists()
    dataset.save(data)
    back = dataset.load()
    assert back.table.equals(data.table) and (back.encoder, back.others) == (data.encoder, others)
    for name in ("tensors", "other_tensors"):
        saved, loaded = getattr(data, name), getattr(back, name)
        assert saved.keys() == loaded.keys() and all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "set.safetensors"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(DatasetError, match="set.safetensors is damaged"):
        TrainingSetDataset(filepath=str(file)).load()


def test_kedro_viz_shows_its_first_rows(tiny_training_set, tmp_path):
    dataset = TrainingSetDataset(filepath=str(tmp_path / "set.safetensors"))
    dataset.save(tiny_training_set)
    shown = dataset.preview(nrows=2)
    assert shown["columns"] == list(tiny_training_set.table) and len(shown["data"]) == 2
    assert dataset.preview.__annotations__["return"].__name__ == "TablePreview"
