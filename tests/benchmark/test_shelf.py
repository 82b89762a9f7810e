"""Shared trainings: done once for what they are made from, whatever happens to the files."""

import pytest
import torch

from b4m_pipeline.benchmark import shelf as shelf_module
from b4m_pipeline.benchmark.shelf import SECONDS, Shelf
from b4m_pipeline.method.adapter import WEIGHTS_NAME, Adapter


@pytest.fixture
def calls():
    return []


@pytest.fixture
def train(calls):
    def trained() -> Adapter:
        calls.append(1)
        tensors = {"x.lora_A.weight": torch.full((1, 2), float(len(calls))), "x.lora_B.weight": torch.ones(2, 1)}
        about = dict.fromkeys(Adapter.REQUIRED, "x") | {"kind": "lora", "frame_config": "{}", "params": "{}"}
        return Adapter(tensors, about, {"r": 1, "lora_alpha": 1, "target_modules": ["x"]})

    return trained


def test_what_is_made_from_the_same_is_trained_once_also_by_the_next_run(tmp_path, train, calls):
    first = Shelf(tmp_path).take(train, "lora", {"steps": 3}, 0)
    again = Shelf(tmp_path).take(train, "lora", {"steps": 3}, 0)
    assert len(calls) == 1 and torch.equal(first.tensors["x.lora_A.weight"], again.tensors["x.lora_A.weight"])
    assert again.lora_config == first.lora_config and again.metadata == first.metadata
    Shelf(tmp_path).take(train, "lora", {"steps": 4}, 0)
    assert len(calls) == 2


def test_other_code_trains_anew(tmp_path, train, calls, monkeypatch):
    Shelf(tmp_path).take(train, "a")
    monkeypatch.setattr(shelf_module, "recipe_code", lambda *parts: "another")
    Shelf(tmp_path).take(train, "a")
    assert len(calls) == 2


def test_a_damaged_file_is_trained_again(tmp_path, train, calls, caplog):
    Shelf(tmp_path).take(train, "a")
    (file,) = tmp_path.rglob(WEIGHTS_NAME)
    file.write_bytes(b"")
    again = Shelf(tmp_path).take(train, "a")
    assert len(calls) == 2 and again.tensors["x.lora_A.weight"][0, 0] == 2
    assert "is trained again" in caplog.text and "damaged" in caplog.text
    Shelf(tmp_path).take(train, "a")
    assert len(calls) == 2


def test_what_was_not_done_again_is_counted(tmp_path, train, monkeypatch):
    shelf, clock = Shelf(tmp_path), iter([10.0, 17.5, 20.0, 21.0])
    monkeypatch.setattr(shelf_module.time, "monotonic", lambda: next(clock))
    assert shelf.take(train, "a").metadata[SECONDS] == "7.5" and shelf.reused == 0
    shelf.take(train, "a")
    shelf.take(train, "b")
    shelf.take(train, "b")
    assert shelf.reused == 8.5
