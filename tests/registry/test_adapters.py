"""Adapters in the registry: nothing is half registered, and one of the same recipe is found again."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from kedro.io import DatasetError
from mlflow.exceptions import MlflowException
from safetensors import safe_open

from b4m_pipeline.common.provenance import Recipe
from b4m_pipeline.datasets.registry import RegisteredAdapterDataset
from b4m_pipeline.method.adapter import URI_KEY, WEIGHTS_NAME, AdapterError
from b4m_pipeline.method.files import load_adapter, save_adapter
from b4m_pipeline.registry import adapters
from b4m_pipeline.registry.adapters import (
    RECORD_NAME,
    RegistrationError,
    adapter_uri,
    alias_of,
    fetch_adapter,
    find_joined,
    find_same,
    keep_registered,
    register_adapter,
    registered_name,
)
from tests import warm

INFERENCE = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture
def dataset(tmp_path: Path) -> RegisteredAdapterDataset:
    return RegisteredAdapterDataset(filepath=str(tmp_path / "made"), save_args={"inference": INFERENCE})


def draw(pipeline, prompt: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    images = pipeline(prompt, num_inference_steps=2, generator=generator, output_type="np").images
    return images[0]


def test_names_follow_the_kind(tiny_adapter) -> None:
    assert registered_name(tiny_adapter) == "b4m-make-cup-ink"
    tiny_adapter.metadata |= {"kind": "content", "name": "cup"}
    assert registered_name(tiny_adapter, "shop") == "shop-content-cup"
    tiny_adapter.metadata["kind"] = "reconstructed"
    assert registered_name(tiny_adapter) == "b4m-joined-cup"
    tiny_adapter.metadata["kind"] = "merged"
    assert registered_name(tiny_adapter) == "b4m-merged-cup"
    tiny_adapter.metadata["kind"] = "lora"
    with pytest.raises(RegistrationError, match="lora"):
        registered_name(tiny_adapter)


@pytest.mark.parametrize(
    ("kind", "steps", "alias"),
    [("made", 74, "trial"), ("made", 75, "candidate"), ("content", 199, "trial"), ("content", 200, "candidate"),
     ("reconstructed", 2, "trial"), ("merged", None, "candidate")],
)  # fmt: skip
def test_an_adapter_of_a_short_training_takes_no_candidates_place(tiny_adapter, kind, steps, alias) -> None:
    tiny_adapter.metadata |= {"kind": kind, "params": json.dumps({"train": {"steps": steps}} if steps else {"merge": {}})}
    assert alias_of(tiny_adapter, "candidate", {"alias": "trial", "break_steps": 200, "make_steps": 75}) == alias
    assert alias_of(tiny_adapter, "candidate", None) == "candidate"


@pytest.mark.parametrize("broken", ["_create_model_version", "set_registered_model_alias"])
def test_a_failure_leaves_the_weights_and_nothing_half_registered(
    dataset, tiny_adapter, tracking, tmp_path, monkeypatch, broken
) -> None:
    def fail(*args, **kwargs):
        raise MlflowException("the server is away")

    monkeypatch.setattr(mlflow.tracking.MlflowClient, broken, fail)
    with pytest.raises(DatasetError, match="server is away") as error:
        dataset.save(tiny_adapter)
    assert isinstance(error.value.__cause__, RegistrationError)
    assert f"kedro register {tmp_path / 'made'}" in str(error.value)
    assert load_adapter(tmp_path / "made").modules() == tiny_adapter.modules()
    assert not (tmp_path / "made" / RECORD_NAME).exists()
    assert tracking.search_registered_models() == []
    experiment = tracking.get_experiment_by_name("tests").experiment_id
    assert len(tracking.search_logged_models([experiment])) == 0
    monkeypatch.undo()
    assert register_adapter(tmp_path / "made")["version"] == "1"


def test_what_another_process_has_registered_meanwhile_is_left_alone(dataset, tiny_adapter, tracking, monkeypatch) -> None:
    name, register = "b4m-make-cup-ink", adapters._new_version

    def register_second(client, logged, own_name, tags):
        tracking.create_registered_model(own_name)
        tracking.create_model_version(own_name, "elsewhere")
        return register(client, logged, own_name, tags)

    def fail(*args, **kwargs):
        raise MlflowException("the server is away")

    monkeypatch.setattr(adapters, "_new_version", register_second)
    monkeypatch.setattr(mlflow.tracking.MlflowClient, "set_registered_model_alias", fail)
    with pytest.raises(DatasetError):
        dataset.save(tiny_adapter)
    assert [version.source for version in tracking.search_model_versions(f"name='{name}'")] == ["elsewhere"]


def test_nothing_fetched_is_left_behind(dataset, tiny_adapter, tracking, tmp_path, monkeypatch) -> None:
    dataset.save(tiny_adapter)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert fetch_adapter("models:/b4m-make-cup-ink@candidate").modules() == tiny_adapter.modules()
    assert not list((tmp_path / "temporary").iterdir())


def test_a_failure_keeps_the_versions_before(dataset, tiny_adapter, tracking, monkeypatch) -> None:
    dataset.save(tiny_adapter)

    def fail(*args, **kwargs):
        raise MlflowException("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.tracking.MlflowClient, "set_registered_model_alias", fail)
        with pytest.raises(DatasetError):
            dataset.save(tiny_adapter)
    assert [v.version for v in tracking.search_model_versions("name='b4m-make-cup-ink'")] == [1]
    assert tracking.get_model_version_by_alias("b4m-make-cup-ink", "candidate").version == 1


def test_another_process_gets_a_working_pipeline_by_alias(dataset, tiny_adapter, tiny_sdxl, tracking, tmp_path) -> None:
    from diffusers import DiffusionPipeline

    dataset.save(tiny_adapter)
    prompt = tiny_adapter.metadata["example_prompt"]
    script = f"""
import mlflow, numpy as np, torch
pipeline = mlflow.diffusers.load_model("models:/b4m-make-cup-ink@candidate").load_pipeline(device="cpu")
generator = torch.Generator().manual_seed(3)
images = pipeline({prompt!r}, num_inference_steps=2, generator=generator, output_type="np").images
np.save({str(tmp_path / "image.npy")!r}, images[0])
"""
    done = warm.run(["python", "-c", script], tmp_path, dict(os.environ))  # with the MLFLOW_TRACKING_URI of this test
    assert done.returncode == 0, done.stderr[-3000:]
    image = np.load(tmp_path / "image.npy")
    pipeline = DiffusionPipeline.from_pretrained(tiny_sdxl)
    bare = draw(pipeline, prompt)
    pipeline.load_lora_weights(tmp_path / "made")
    assert image.shape == (32, 32, 3)
    assert np.abs(image - draw(pipeline, prompt)).max() < 1e-5
    assert np.abs(image - bare).max() > 1e-2


def recipe(kind="made", **changes) -> Recipe:
    fields = {"frame": "f", "data": "d", "parameters": {"train": {"steps": 2, "rate": 1e-3}, "seed": 0}}
    return Recipe(kind, "cup-ink", **(fields | changes), code={"training/trainer": "1"}, libraries={"torch": "2.0"})


def test_an_adapter_of_the_same_recipe_is_found_and_not_registered_twice(dataset, tiny_adapter, tracking, tmp_path) -> None:
    tiny_adapter.metadata |= recipe().metadata()
    dataset.save(tiny_adapter)
    other = dataclasses.replace(tiny_adapter, metadata=tiny_adapter.metadata | recipe(data="e").metadata())
    dataset.save(other)
    assert tracking.get_model_version_by_alias("b4m-make-cup-ink", "candidate").version == 2
    assert find_same(recipe(data="g")) is None and find_same(recipe("content")) is None
    found = find_same(recipe())
    assert found.metadata[URI_KEY] == "models:/b4m-make-cup-ink/1"
    with mlflow.start_run() as run:
        dataset.save(found)
    assert len(tracking.search_model_versions("name='b4m-make-cup-ink'")) == 2
    assert tracking.get_model_version_by_alias("b4m-make-cup-ink", "candidate").version == 1
    assert tracking.get_run(run.info.run_id).data.tags["reused.b4m-make-cup-ink"] == "models:/b4m-make-cup-ink/1"
    assert adapter_uri(tmp_path / "made") == "models:/b4m-make-cup-ink/1"
    assert URI_KEY not in json.loads(safe_open(tmp_path / "made" / WEIGHTS_NAME, "pt").metadata()["b4m"])


def test_what_differs_is_said_when_an_adapter_is_trained_again(dataset, tiny_adapter, tracking, caplog) -> None:
    caplog.set_level("INFO")
    frame = tiny_adapter.metadata["frame"]
    tiny_adapter.metadata |= recipe().metadata()
    dataset.save(tiny_adapter)
    wanted = recipe(frame=frame, data="e", parameters={"train": {"steps": 2, "rate": 7e-4}, "seed": 0})
    wanted = dataclasses.replace(wanted, code={"training/trainer": "2"}, libraries={"torch": "2.1"})
    assert find_same(wanted) is None
    said = "it differs from models:/b4m-make-cup-ink/1: pictures or captions changed; train.rate 0.001 -> 0.0007; "
    assert said + "torch 2.0 -> 2.1; code of training/trainer changed" in caplog.text
    assert find_same(dataclasses.replace(recipe(frame=frame), parents=("x",))) is None
    assert "models:/b4m-make-cup-ink/1: what it started from changed" in caplog.text


def test_joined_halves_are_found_by_their_recipe(tiny_adapter, tracking, tmp_path) -> None:
    tiny_adapter.metadata |= {"kind": "reconstructed", "recipe_digest": "one"}
    RegisteredAdapterDataset(filepath=str(tmp_path / "joined")).save(tiny_adapter)
    assert find_joined("one").metadata[URI_KEY] == "models:/b4m-joined-cup-ink/1" and find_joined("two") is None


def test_a_found_adapter_whose_file_is_damaged_is_passed_over(dataset, tiny_adapter, tracking, tmp_path, caplog) -> None:
    tiny_adapter.metadata |= recipe().metadata()
    dataset.save(tiny_adapter)
    dataset.save(tiny_adapter)
    newest = mlflow.diffusers.load_model("models:/b4m-make-cup-ink/2").adapter_path
    (Path(newest) / WEIGHTS_NAME).write_bytes(b"no weights")
    assert find_same(recipe()).metadata[URI_KEY] == "models:/b4m-make-cup-ink/1"
    assert "models:/b4m-make-cup-ink/2 cannot be used" in caplog.text


def test_a_registered_folder_says_what_it_is_until_its_weights_change(tiny_adapter, tracking, tmp_path) -> None:
    file = save_adapter(tiny_adapter, tmp_path / "made")
    assert adapter_uri(file.parent) is None and URI_KEY not in fetch_adapter(str(file.parent)).metadata
    record = register_adapter(file.parent, alias="first", prefix="shop")
    assert record["uri"] == "models:/shop-make-cup-ink/1" == adapter_uri(file.parent)
    assert json.loads((file.parent / RECORD_NAME).read_text()) == record
    for source in (str(file.parent), record["uri"], "models:/shop-make-cup-ink@first"):
        fetched = fetch_adapter(source)
        assert fetched.metadata[URI_KEY] == record["uri"]  # an alias may move, the version does not
        assert all(torch.equal(fetched.tensors[key], value) for key, value in tiny_adapter.tensors.items())
    save_adapter(dataclasses.replace(tiny_adapter, tensors={k: v + 1 for k, v in tiny_adapter.tensors.items()}), file.parent)
    assert adapter_uri(file.parent) is None


def test_what_the_registry_does_not_have_is_named(tiny_adapter, tracking, tmp_path) -> None:
    for source in ("models:/b4m-make-nobody@candidate", "models:/b4m-make-nobody/3"):
        with pytest.raises(RegistrationError, match=f"{source} cannot be fetched from the registry"):
            fetch_adapter(source)
    with pytest.raises(AdapterError, match="No adapter at"):
        fetch_adapter(str(tmp_path / "none"))
    save_adapter(tiny_adapter, tmp_path)
    with pytest.raises(RegistrationError, match="models:/b4m-make-nobody/3 could not be made candidate"):
        keep_registered(tmp_path, "models:/b4m-make-nobody/3", "candidate")
    assert not (tmp_path / RECORD_NAME).exists()


def test_a_registry_that_does_not_answer_means_training(tracking, monkeypatch, caplog) -> None:
    def away(*args, **keywords):
        raise MlflowException("the server is away")

    monkeypatch.setattr(mlflow.tracking.MlflowClient, "search_model_versions", away)
    assert find_same(recipe()) is None and find_joined("one") is None
    assert "cannot be asked for an adapter of the same recipe: the server is away" in caplog.text
