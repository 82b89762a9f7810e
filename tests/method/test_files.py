"""Adapters in files: as they were, whole or not there, and only ours."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from b4m_pipeline.method.adapter import URI_KEY, WEIGHTS_NAME, AdapterError
from b4m_pipeline.method.files import load_adapter, save_adapter


def test_an_adapter_comes_back_from_its_folder_and_from_its_file(tiny_adapter, tmp_path):
    file = save_adapter(tiny_adapter, tmp_path / "new/folder")
    assert file == tmp_path / "new/folder" / WEIGHTS_NAME
    for place in (file, file.parent, str(file.parent)):
        again = load_adapter(place)
        assert again.metadata == tiny_adapter.metadata and again.lora_config == tiny_adapter.lora_config
        assert again.tensors.keys() == tiny_adapter.tensors.keys()
        assert all(torch.equal(value, tiny_adapter.tensors[key]) for key, value in again.tensors.items())
    assert [path.name for path in file.parent.iterdir()] == [WEIGHTS_NAME]  # nothing half written


def test_diffusers_finds_what_it_looks_for(tiny_adapter, tmp_path):
    with safe_open(save_adapter(tiny_adapter, tmp_path), framework="pt") as handle:
        assert all(name.startswith("unet.") for name in handle.keys())
        assert '"unet.r": 4' in handle.metadata()["lora_adapter_metadata"]


def test_weights_are_float32_whatever_they_were_trained_in(tiny_adapter, tmp_path):
    half = {key: value.bfloat16() for key, value in tiny_adapter.tensors.items()}
    saved = load_adapter(save_adapter(dataclasses.replace(tiny_adapter, tensors=half), tmp_path))
    assert all(value.dtype == torch.float32 and torch.equal(value, half[key].float()) for key, value in saved.tensors.items())


def test_where_it_is_registered_is_no_part_of_the_file(tiny_adapter, tmp_path):
    named = dataclasses.replace(tiny_adapter, metadata=tiny_adapter.metadata | {URI_KEY: "models:/x/1"})
    assert load_adapter(save_adapter(named, tmp_path)).metadata == tiny_adapter.metadata
    assert named.metadata[URI_KEY] == "models:/x/1"  # what is at hand keeps it


def test_an_adapter_without_its_origin_is_not_written(tiny_adapter, tmp_path):
    del tiny_adapter.metadata["data_digest"]
    with pytest.raises(AdapterError, match=r"cup-ink lacks the metadata \['data_digest'\]"):
        save_adapter(tiny_adapter, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_read_says_what_to_do(tiny_adapter, tmp_path):
    with pytest.raises(AdapterError, match=r"No adapter at .*: run the pipeline that trains it first"):
        load_adapter(tmp_path)
    file = save_adapter(tiny_adapter, tmp_path)
    whole = file.read_bytes()
    tensors = {key: value.clone() for key, value in load_file(file).items()}  # what is loaded lies in the file, until it is not
    for damage in (b"", whole[:-9], b"\x80\x04pickled"):
        file.write_bytes(damage)
        with pytest.raises(AdapterError, match="is damaged .*: train it again or fetch another version"):
            load_adapter(file)
    save_file(tensors, file)
    with pytest.raises(AdapterError, match="was not written by this project"):
        load_adapter(file)
    save_file(tensors, file, metadata={"b4m": "{}"})
    with pytest.raises(AdapterError, match="is damaged"):
        load_adapter(file)
