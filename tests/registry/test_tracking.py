import json
import logging
import time
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from b4m_pipeline.registry import tracking as module
from b4m_pipeline.registry.tracking import (
    MetricLogger,
    describe_evaluation,
    evaluated_picture,
    log_inputs,
    log_picture,
    logged_curve,
    nested_run,
)


@pytest.fixture
def server_away(monkeypatch: pytest.MonkeyPatch):
    """Call it to make MLflow's server go away, with False to bring it back."""
    original = mlflow.tracking.MlflowClient.log_batch

    def fail(*args, **kwargs):
        raise MlflowException("connection refused")

    return lambda away=True: monkeypatch.setattr(mlflow.tracking.MlflowClient, "log_batch", fail if away else original)


def test_loss_curves_arrive_in_order(tracking) -> None:
    with mlflow.start_run() as run, MetricLogger("content_break") as log:
        for step in range(5):
            log({"loss": 1.0 / (step + 1), "grad_norm": 2.0}, step)
    history = tracking.get_metric_history(run.info.run_id, "content_break.loss")
    assert [(m.step, m.value) for m in history] == [(step, 1.0 / (step + 1)) for step in range(5)]
    assert len(tracking.get_metric_history(run.info.run_id, "content_break.grad_norm")) == 5


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that a MetricLogger sees: a machine under load does not stop it."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    return now


def test_they_are_sent_while_training_and_in_batches(tracking, clock, monkeypatch) -> None:
    sent = []
    original = mlflow.tracking.MlflowClient.log_batch

    def count(self, run_id, metrics=(), **kwargs):
        sent.append(len(metrics))
        return original(self, run_id, metrics=metrics, **kwargs)

    monkeypatch.setattr(mlflow.tracking.MlflowClient, "log_batch", count)
    with mlflow.start_run():
        log = module.MetricLogger("make", interval=0.05)
        for step in range(100):
            clock[0] += 0.001
            log({"loss": 0.0}, step)
        clock[0] += 0.06
        log({"loss": 0.0}, 100)
        assert sum(sent) == 101  # without its end having been told
        assert len(sent) <= 3


def test_a_server_that_goes_away_costs_one_warning_and_nothing_else(tracking, server_away, caplog) -> None:
    with mlflow.start_run() as run, caplog.at_level(logging.WARNING, "b4m_pipeline"):
        with MetricLogger("make") as log:
            log({"loss": 1.0}, 0)
            server_away()
            assert not log.flush()
            assert not log.flush()
            log({"loss": 2.0}, 1)
            server_away(False)
        assert [m.value for m in tracking.get_metric_history(run.info.run_id, "make.loss")] == [1.0, 2.0]
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text


def test_what_never_arrived_is_said_at_the_end(tracking, server_away, caplog) -> None:
    server_away()
    with mlflow.start_run(), caplog.at_level(logging.WARNING, "b4m_pipeline"), MetricLogger("make") as log:
        log({"loss": 1.0, "norm": 1.0}, 0)
    assert "2 values of make did not reach MLflow" in caplog.text


def test_slow_failures_are_not_repeated_at_every_step(tracking, clock, monkeypatch) -> None:
    attempts = []

    def slow_failure(*args, **kwargs):
        attempts.append(0)
        clock[0] += 0.05
        raise MlflowException("timeout")

    monkeypatch.setattr(mlflow.tracking.MlflowClient, "log_batch", slow_failure)
    with mlflow.start_run():
        log = module.MetricLogger("make", interval=0.0)
        for step in range(20):
            clock[0] += 0.01
            log({"loss": 1.0}, step)
    assert len(attempts) == 1


def test_without_a_run_nothing_is_logged(tracking, tmp_path) -> None:
    with MetricLogger("make") as log:
        log({"loss": 1.0}, 0)
    log_picture(Image.new("RGB", (4, 4)), "sheet")
    assert tracking.search_runs([tracking.get_experiment_by_name("tests").experiment_id]) == []


def test_a_runs_pictures_are_its_datasets_by_their_digest(tracking, tiny_manifest) -> None:
    manifest, _ = tiny_manifest
    twice = pd.concat([manifest, manifest], ignore_index=True)  # a further caption each
    with mlflow.start_run() as run:
        log_inputs(run.info.run_id, twice, {"cup": "own/cup"})
        log_inputs(run.info.run_id, manifest.iloc[::-1], {"cup": "own/cup"})  # the same files
        changed = manifest[manifest["role"] == "style"].iloc[1:]
        log_inputs(run.info.run_id, changed, {})
    found = tracking.get_run(run.info.run_id).inputs.dataset_inputs
    by_role = {}
    for given in found:
        (role,) = [tag.value for tag in given.tags if tag.key == "mlflow.data.context"]
        by_role.setdefault(role, []).append(given.dataset)
    assert {role: len(own) for role, own in by_role.items()} == {
        "content": 1, "style": 2, "counterpart_content": 1, "counterpart_style": 1,
    }  # fmt: skip
    (content,) = by_role["content"]
    assert content.name == "cup" and json.loads(content.source) == {"uri": "own/cup"}
    assert json.loads(content.profile)["pictures"] == 3


def test_pictures_are_kept_with_the_run(tracking) -> None:
    with mlflow.start_run() as run:
        log_picture(Image.new("RGB", (4, 4), "red"), "samples/step_10")
    assert [f.path for f in tracking.list_artifacts(run.info.run_id, "pictures/samples")] == ["pictures/samples/step_10.png"]


def test_a_nested_run_has_its_own_figures_and_outlives_a_store_that_goes_away(tracking, monkeypatch, caplog) -> None:
    original = mlflow.end_run

    def away(*arguments, **keywords):
        original(*arguments, **keywords)
        raise ConnectionError("store is away")

    with mlflow.start_run() as outer:
        with nested_run("cup-ink sum", {"pair": "cup-ink", "error": None}) as log:
            log({"truth": 0.5, "diversity": float("nan")}, {})
        with monkeypatch.context() as patch, nested_run("cup-ink joint", {}):
            patch.setattr(mlflow, "end_run", away)
        assert mlflow.active_run().info.run_id == outer.info.run_id
    assert "The end of the run of cup-ink joint cannot be sent to MLflow now: store is away" in caplog.text
    (found,) = mlflow.MlflowClient().search_runs([outer.info.experiment_id], "tags.pair = 'cup-ink'")
    assert found.data.metrics == {"truth": 0.5} and found.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert "error" not in found.data.tags


def test_a_found_adapters_loss_curve_is_that_of_the_run_that_made_it(tracking, tiny_adapter, tmp_path) -> None:
    from b4m_pipeline.datasets.registry import RegisteredAdapterDataset

    history = [{"loss": 0.5, "norm": 1.0}, {"loss": 0.25, "norm": 2.0, "validation_loss": 0.75}]
    with mlflow.start_run(), MetricLogger("joint_make") as log:
        for step, entry in enumerate(history):
            log(entry, step)
            log({"other": 1.0}, step)
        RegisteredAdapterDataset(filepath=str(tmp_path / "made")).save(tiny_adapter)
    MetricLogger("content_break")({"loss": 9.0}, 0)
    tiny_adapter.metadata["registry_uri"] = "models:/b4m-make-cup-ink/1"
    curve = logged_curve(tiny_adapter, "joint_make")
    fresh = pd.DataFrame(history).rename_axis("step").reset_index()
    pd.testing.assert_frame_equal(curve[fresh.columns], fresh)
    tiny_adapter.metadata["registry_uri"] = "models:/b4m-make-cup-ink/7"
    assert logged_curve(tiny_adapter, "joint_make").empty


def test_the_first_picture_of_an_evaluation_is_found_again(tracking, caplog) -> None:
    tracking.create_registered_model("b4m-make-cup-ink")
    for _ in range(3):
        tracking.create_model_version("b4m-make-cup-ink", "file:///nowhere")
    row = Image.new("RGB", (12, 4), "blue")
    row.paste("red", (0, 0, 4, 4))
    with mlflow.start_run():
        log_picture(row, "samples_made_composition")
        describe_evaluation({"evaluation.made.composition.kept": 0.5}, "models:/b4m-make-cup-ink/1")
    with mlflow.start_run():  # its pictures are gone
        describe_evaluation({"evaluation.made.composition.kept": 0.5}, "models:/b4m-make-cup-ink/2")
    found = evaluated_picture("models:/b4m-make-cup-ink/1")
    assert found.size == (4, 4) and found.getcolors() == [(16, (255, 0, 0))]
    assert evaluated_picture("models:/b4m-make-cup-ink/2") is None and "cannot be had" in caplog.text
    assert evaluated_picture("models:/b4m-make-cup-ink/3") is None
