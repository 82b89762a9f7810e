"""Which MLflow run work belongs to."""

import threading

import mlflow
import pytest

from b4m_pipeline.registry import runs


@pytest.fixture(autouse=True)
def _nothing_handed_on():
    yield
    runs.hand_on(None)


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_works_for_the_run_that_was_handed_on(tracking) -> None:
    with mlflow.start_run() as run:
        assert runs.current_run() == run.info.run_id and in_thread(runs.current_run) is None
        runs.hand_on(run.info.run_id)
        assert in_thread(runs.current_run) == run.info.run_id
        with mlflow.start_run(nested=True) as nested:
            assert runs.current_run() == nested.info.run_id  # the nearest
        runs.hand_on(None)
        assert in_thread(runs.current_run) is None


def test_work_without_a_run_gets_one_of_its_own(tracking) -> None:
    with runs.run_of_work("alone") as own:
        assert tracking.get_run(own).info.status == "RUNNING"
    assert tracking.get_run(own).info.status == "FINISHED" and tracking.get_run(own).info.run_name == "alone"
    with mlflow.start_run() as run:
        with runs.run_of_work("alone") as same:
            assert same == run.info.run_id
        assert tracking.get_run(same).info.status == "RUNNING"


def test_all_that_is_active_is_ended(tracking) -> None:
    begun = [mlflow.start_run(nested=depth > 0).info.run_id for depth in range(2)]
    runs.end_active("KILLED")
    assert [tracking.get_run(run_id).info.status for run_id in begun] == ["KILLED", "KILLED"] and mlflow.active_run() is None


def test_another_processs_run_goes_on_after_this_ones_part(tracking) -> None:
    run = tracking.create_run(tracking.get_experiment_by_name("tests").experiment_id)
    with runs.taking_part(run.info.run_id, mlflow.get_tracking_uri()):
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert mlflow.active_run() is None and tracking.get_run(run.info.run_id).info.status == "RUNNING"
    with runs.taking_part(None, mlflow.get_tracking_uri()):
        assert mlflow.active_run() is None


def test_a_store_that_is_away_stops_no_part_of_the_work(tracking, caplog, tmp_path) -> None:
    done = []
    with runs.taking_part("none", mlflow.get_tracking_uri()):
        done.append(mlflow.active_run())
    assert done == [None] and "MLflow's run cannot be had now, nothing of this is logged to it" in caplog.text
