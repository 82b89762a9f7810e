"""What killed processes leave in MLflow, and that the next run settles it."""

import logging
import os
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from b4m_pipeline.common.locks import FolderLock
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry import leftovers
from b4m_pipeline.registry.adapters import MODEL_TAG, UNFINISHED, find_same, register_adapter
from b4m_pipeline.registry.leftovers import HOST_TAG, LOCK_TAG, clear, signed

NAME = "b4m-make-cup-ink"


class Killed(BaseException):
    """Stands for kill -9: nothing that would be taken back on an error is."""


@pytest.fixture
def lock(tmp_path) -> Path:
    return tmp_path / "data/.lock"


@pytest.fixture
def experiment(tracking) -> str:
    return tracking.get_experiment_by_name("tests").experiment_id


@pytest.fixture
def gone(lock, tracking) -> str:
    """A run whose process is gone."""
    with signed(lock):
        run = mlflow.start_run()
    leave()
    return run.info.run_id


def leave() -> None:
    """The process is gone, and its runs stay as they are."""
    from mlflow.tracking.fluent import _active_run_stack

    _active_run_stack.get().clear()


def status(tracking: MlflowClient, run_id: str) -> str:
    return tracking.get_run(run_id).info.status


def test_every_run_is_signed_as_it_is_made_and_what_was_in_the_context_stays(tracking, lock, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"team": "red"}')
    with signed(lock), mlflow.start_run() as run, mlflow.start_run(nested=True) as nested:
        pass
    for each in (run, nested):
        tags = tracking.get_run(each.info.run_id).data.tags
        assert tags[LOCK_TAG] == str(lock) and tags["team"] == "red"
    assert os.environ["MLFLOW_RUN_CONTEXT"] == '{"team": "red"}'


def test_runs_whose_process_is_gone_are_killed_and_others_left(tracking, experiment, gone, lock, tmp_path) -> None:
    other = FolderLock(tmp_path / "elsewhere")
    other.acquire("kedro run", "")
    with signed(other.path):
        alive = mlflow.start_run().info.run_id
        leave()
    with signed(tmp_path / "third/.lock"):
        gone_too = mlflow.start_run().info.run_id
        leave()
    elsewhere, unsigned = (tracking.create_run(experiment, tags=tags).info.run_id for tags in ({HOST_TAG: "x"}, {}))
    clear(experiment, lock)
    assert [status(tracking, run) for run in (gone, gone_too)] == ["KILLED"] * 2
    assert [status(tracking, run) for run in (alive, elsewhere, unsigned)] == ["RUNNING"] * 3
    other.release()


STEPS = ("create_registered_model", "_create_model_version", "update_model_version", "set_registered_model_alias",
         "delete_model_version_tag")  # fmt: skip
"""Requests of a registration, in order, after the model was logged."""


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_registration_that_is_cut_short_is_finished_or_taken_back(
    tracking, experiment, lock, tmp_path, tiny_adapter, monkeypatch, step, before
) -> None:
    save_adapter(tiny_adapter, tmp_path / "made")
    original = getattr(MlflowClient, step)

    def cut(self, *arguments, **options):
        if not before:
            original(self, *arguments, **options)
        raise Killed

    monkeypatch.setattr("b4m_pipeline.registry.adapters._undone_on_error", lambda name, model_id: Nothing())
    with monkeypatch.context() as patch, signed(lock):
        patch.setattr(MlflowClient, step, cut)
        run = mlflow.start_run()
        with pytest.raises(Killed):
            register_adapter(tmp_path / "made")
        leave()
    clear(experiment, lock)
    assert status(tracking, run.info.run_id) == "KILLED"
    versions, models = tracking.search_model_versions(), tracking.search_logged_models([experiment])
    finished = STEPS.index(step) > 2 or (step == "update_model_version" and not before)
    assert len(versions) == len(models) == finished and len(tracking.search_registered_models()) == finished
    clear(experiment, lock)  # nothing is left to do
    record = register_adapter(tmp_path / "made")
    version = tracking.get_model_version_by_alias(NAME, "candidate")
    assert version.version == int(record["version"]) and version.description.startswith("# cup-ink")
    for each in tracking.search_model_versions():
        assert UNFINISHED not in each.tags and each.description
    kept = {each.tags[MODEL_TAG] for each in tracking.search_model_versions()}
    assert kept == {model.model_id for model in tracking.search_logged_models([experiment])}


class Nothing:
    """In place of what takes a registration back on an error."""

    def __enter__(self) -> MlflowClient:
        return MlflowClient()

    def __exit__(self, *exception: object) -> None:
        pass


def test_a_version_that_is_not_finished_is_no_adapter_to_reuse(tracking, tmp_path, tiny_adapter, monkeypatch) -> None:
    from b4m_pipeline.common.provenance import Recipe

    recipe = Recipe("made", "cup-ink", "f" * 64, "d" * 16, {"train": {"steps": 2}, "seed": 0})
    tiny_adapter.metadata |= recipe.metadata()
    save_adapter(tiny_adapter, tmp_path / "made")
    number = register_adapter(tmp_path / "made")["version"]
    assert find_same(recipe) is not None
    tracking.set_model_version_tag(NAME, number, UNFINISHED, "candidate")
    assert find_same(recipe) is None


def test_a_store_that_does_not_answer_stops_nothing(tracking, lock, monkeypatch, caplog) -> None:
    def away(*arguments, **options):
        raise ConnectionError("gone fishing")

    monkeypatch.setattr(MlflowClient, "search_runs", away)
    with caplog.at_level(logging.WARNING):
        leftovers.clear("1", lock)
    assert "gone fishing" in caplog.text
