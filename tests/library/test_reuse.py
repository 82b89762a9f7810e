"""A stage is trained once: what the registry has of the same recipe is taken, unless that is not wanted."""

from dataclasses import dataclass
from types import SimpleNamespace

import mlflow
import pytest

from b4m_pipeline.common.provenance import Recipe
from b4m_pipeline.library.reuse import start_of, train_or_reuse
from b4m_pipeline.method.adapter import URI_KEY
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.adapters import register_adapter
from b4m_pipeline.training.checkpoint_files import checkpoint_file
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.starts import StartError
from tests.training.helpers import BREAK

PARAMETERS = {"train": {"steps": 2}, "frame": {"halves": "free"}}


@dataclass
class Stage:
    """Trains for two steps without a model."""

    adapter: object
    recipe: Recipe
    seen: list

    name, concept_name, params = "content_break", "cup", SimpleNamespace(device="cpu", processes=1)

    def train(self, io):
        self.seen.append(io)
        history = [{"loss_content": 1.0}, {"loss_content": 0.5}]
        for step, entry in enumerate(history):
            io.log(entry, step)
        return self.adapter, history


@pytest.fixture
def stage(tiny_adapter) -> Stage:
    own = Recipe("content", "cup", "f" * 64, "d", PARAMETERS, code={"a": "1"}, libraries={"torch": "2"})
    tiny_adapter.metadata |= own.metadata() | {"half": "lora_A", "token": "snq"}
    return Stage(tiny_adapter, own, [])


def test_a_recipe_that_the_registry_has_is_not_trained_again(stage, tracking, tmp_path):
    with mlflow.start_run():
        adapter, curve = train_or_reuse(stage, str(tmp_path), reuse=True)
        save_adapter(adapter, tmp_path / "half")
        register_adapter(tmp_path / "half")
    assert len(stage.seen) == 1 and curve.to_dict("list") == {"step": [0, 1], "loss_content": [1.0, 0.5]}
    assert stage.seen[0].checkpoint == checkpoint_file(tmp_path, "content_break", "cup")
    again, logged = train_or_reuse(stage, str(tmp_path), reuse=True)
    assert len(stage.seen) == 1 and again.metadata[URI_KEY] == "models:/b4m-content-cup/1"
    assert logged["loss_content"].tolist() == [1.0, 0.5]
    trained, _ = train_or_reuse(stage, str(tmp_path), reuse=False)
    assert len(stage.seen) == 2 and URI_KEY not in trained.metadata
    stage.recipe = Recipe("content", "cup", "f" * 64, "e", PARAMETERS, code={"a": "1"}, libraries={"torch": "2"})
    train_or_reuse(stage, str(tmp_path), reuse=True)
    assert len(stage.seen) == 3  # other pictures


def test_without_a_run_it_is_trained_all_the_same(stage, tmp_path):
    adapter, curve = train_or_reuse(stage, str(tmp_path), reuse=False)
    assert adapter is stage.adapter and len(curve) == 2


def test_a_break_starts_from_a_folder_or_the_registry(tiny_halves, tracking, tmp_path):
    def start(source):
        return start_of(BreakParams(**BREAK | {"start_from": source}), "content_break")

    folder = tmp_path / "half"
    save_adapter(tiny_halves[0], folder)
    assert start(None) is None and start(str(folder)).metadata["name"] == "cup"
    register_adapter(folder)
    assert start("models:/b4m-content-cup@candidate").metadata[URI_KEY] == "models:/b4m-content-cup/1"
    for source in ("models:/b4m-content-hat@candidate", str(tmp_path / "none")):
        with pytest.raises(StartError, match=r"^content_break\.start_from: "):
            start(source)
