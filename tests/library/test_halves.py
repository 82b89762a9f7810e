"""Both halves: asked of the registry, trained at once to the same bits as one after another, in one MLflow run, or killed."""

import logging
import time

import mlflow
import pandas as pd
import pytest
import torch

from b4m_pipeline.common import devices
from b4m_pipeline.library import halves, workers
from b4m_pipeline.library.halves import Halves
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.places import Place
from b4m_pipeline.training.stages import BreakStage
from tests.library.test_workers import forked  # noqa: F401 (a fixture)
from tests.training.helpers import BREAK, CONTENT, STYLE, frame

NAMES = ("content", "style")


@pytest.fixture
def stages(tiny_training_set, tiny_base):
    """Makes both breaks, of so many steps."""

    def of(steps: int = 4) -> dict[str, BreakStage]:
        about = (tiny_training_set, tiny_base, frame())
        params = BreakParams(**BREAK | {"steps": steps})
        return {kind: BreakStage(kind, *about, own, params, 0) for kind, own in zip(NAMES, (CONTENT, STYLE), strict=True)}

    return of


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Two places, whatever the machine."""
    monkeypatch.setattr(halves, "places_at_once", lambda stages: [Place()] * len(stages))


@pytest.fixture
def in_order(stages, monkeypatch, tmp_path):
    """Both halves of so many steps, one after another."""

    def train(steps: int = 4) -> dict:
        with monkeypatch.context() as patch:
            patch.setattr(halves, "places_at_once", lambda stages: [])
            both = Halves(stages(steps), str(tmp_path / "in_order"), reuse=False)
            return {name: both.result(name) for name in NAMES}

    return train


def same(one: dict, other: dict) -> bool:
    """Whether weights and curves are the same to the bit."""
    for name in NAMES:
        (adapter, curve), (other_adapter, other_curve) = one[name], other[name]
        pd.testing.assert_frame_equal(curve, other_curve)
        assert adapter.tensors.keys() == other_adapter.tensors.keys()
        if not all(torch.equal(tensor, other_adapter.tensors[key]) for key, tensor in adapter.tensors.items()):
            return False
    return True


def test_at_once_gives_the_same_bits_as_in_order_in_one_run_after_a_kill(
    stages, in_order, at_once, forked, tracking, tmp_path, caplog  # noqa: F811
):  # fmt: skip
    steps, folder = 16, tmp_path / "at_once"
    with mlflow.start_run() as killed:
        both = Halves(stages(steps), str(folder), reuse=False)
        while not list(folder.glob("*.safetensors")):
            time.sleep(0.01)
        both.close()
    assert not list(folder.glob("*.done.safetensors"))
    with caplog.at_level(logging.INFO, "b4m_pipeline"), mlflow.start_run() as run:
        both = Halves(stages(steps), str(folder), reuse=False)
        found = {name: both.result(name) for name in NAMES}
        assert tracking.get_run(run.info.run_id).info.status == "RUNNING"  # its process goes on
    for said in ("Both halves are trained at once", "Resuming at step"):
        assert said in caplog.text
    assert same(found, in_order(steps))
    runs = tracking.search_runs([run.info.experiment_id])
    assert {each.info.run_id: each.info.status for each in runs} == dict.fromkeys(
        [killed.info.run_id, run.info.run_id], "FINISHED"
    )
    for name, column in (("content_break", "loss_content"), ("style_break", "loss_style")):
        points = tracking.get_metric_history(run.info.run_id, f"{name}.{column}")
        assert [point.step for point in points] == list(range(steps))


@pytest.mark.slow
def test_processes_begun_anew_give_the_same_bits(stages, in_order, at_once, tmp_path) -> None:
    assert workers.START == "spawn"
    both = Halves(stages(), str(tmp_path / "at_once"), reuse=False)
    assert same({name: both.result(name) for name in NAMES}, in_order())


def test_a_half_that_the_registry_has_is_not_trained(stages, monkeypatch, tmp_path) -> None:
    asked, made = [], []
    monkeypatch.setattr(halves, "reused", lambda stage: asked.append(stage.kind) or (stage.kind == "content" and "found"))
    monkeypatch.setattr(halves, "trained", lambda stage, folder: made.append(stage.kind) or "made")
    monkeypatch.setattr(halves, "places_at_once", lambda stages: pytest.fail("there is but one"))
    both = Halves(stages(), str(tmp_path), reuse=True)
    assert [both.result(name) for name in NAMES] == ["found", "made"] and asked == ["content", "style"] and made == ["style"]
    monkeypatch.setattr(halves, "places_at_once", lambda stages: [])
    both = Halves(stages(), str(tmp_path), reuse=False)
    assert [both.result(name) for name in NAMES] == ["made", "made"] and len(asked) == 2


def test_a_break_computes_with_half_of_the_threads_whatever_is_beside(stages, monkeypatch) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "all_threads", lambda: 6)
    monkeypatch.setattr(BreakStage, "_train", lambda self, io: seen.append(torch.get_num_threads()))
    stages()["content"].train()
    assert seen == [3] and torch.get_num_threads() == before
