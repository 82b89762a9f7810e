"""Jobs here and on a real local Ray cluster."""

import os
import sys
import time
from pathlib import Path

import pytest

from b4m_pipeline.library.fan_out import FanOutError, check_store, run_jobs, start_ray
from b4m_pipeline.library.params import RayParams


def double(job: int, shared: int) -> tuple[int, int]:
    return 2 * job + shared, os.getpid()


def die_once(job: int, folder: str) -> int:
    """The first attempt at job 1 takes its worker with it."""
    attempt = Path(folder) / f"{job}-{time.time_ns()}"
    attempt.touch()
    if job == 1 and len(list(Path(folder).glob("1-*"))) == 1:
        os._exit(1)
    return job


def always_die(job: int, shared: None) -> int:
    os._exit(1)


def lost(job: int, reason: str) -> tuple[int, str]:
    return -job, reason


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    params = RayParams(workers=2, retries=1)
    start_ray(params)
    yield params
    ray.shutdown()


def test_without_ray_jobs_run_here_in_order():
    results = run_jobs(double, [1, 2, 3], 10, None, lost)
    assert [value for value, _ in results] == [12, 14, 16] and {pid for _, pid in results} == {os.getpid()}


def test_with_ray_they_run_in_other_processes_and_come_back_in_order(cluster):
    results = run_jobs(double, [1, 2, 3], 10, cluster, lost)
    assert [value for value, _ in results] == [12, 14, 16] and os.getpid() not in {pid for _, pid in results}


def test_a_worker_that_dies_is_replaced_and_one_that_always_dies_is_reported(cluster, tmp_path):
    assert run_jobs(die_once, [0, 1, 2], str(tmp_path), cluster, lost) == [0, 1, 2]
    assert len(list(tmp_path.glob("1-*"))) == 2
    ((value, reason),) = run_jobs(always_die, [5], None, cluster, lost)
    assert value == -5 and reason


def test_what_cannot_work_is_said(monkeypatch):
    check_store("sqlite:///x.db", None)
    check_store("sqlite:///x.db", RayParams())
    check_store("http://server:5000", RayParams(address="auto"))
    with pytest.raises(FanOutError, match="which other machines cannot reach"):
        check_store("sqlite:///x.db", RayParams(address="auto"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FanOutError, match="pip install ray"):
        run_jobs(double, [1], 0, RayParams(), lost)
