"""Where breaks are trained at once, and where one after the other."""

from types import SimpleNamespace

import pytest
import torch

from b4m_pipeline.training import places
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.places import SHORTEST, Place, places_at_once
from tests.training.helpers import BREAK, frame


@pytest.fixture
def machine(monkeypatch, tiny_base):
    """Places of both breaks on a machine with these."""

    def on(cores=2, threads=1, free=2**40, gpus=(), visible=None, steps=(SHORTEST, SHORTEST), **params) -> list[Place]:
        monkeypatch.setattr(places.os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
        monkeypatch.setattr(places, "threads_of_a_half", lambda: threads)
        monkeypatch.setattr(places, "available_memory", lambda: free)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: gpus[index])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        stages = [
            SimpleNamespace(
                name=name, base_model=tiny_base, frame=frame(), params=BreakParams(**BREAK | {"steps": count} | params)
            )
            for name, count in zip(("content_break", "style_break"), steps, strict=True)
        ]
        return places_at_once(stages)

    return on


def test_a_cpu_with_a_core_for_each_has_two_places(machine, caplog) -> None:
    assert machine() == machine(cores=8, threads=4) == [Place(), Place()]
    assert machine(cores=1) == machine(cores=2, threads=2) == []  # OMP_NUM_THREADS=2
    assert not caplog.records


def test_short_trainings_are_not_worth_a_process(machine) -> None:
    assert machine(steps=(SHORTEST, SHORTEST - 1)) == machine(steps=(2, 2)) == []


def test_memory_is_looked_at_first(machine, caplog) -> None:
    caplog.set_level("INFO")
    assert machine(free=2**30) == []  # half a GiB each for libraries, and the model besides
    (said,) = caplog.messages
    assert said.startswith("The breaks are trained one after the other: at once they need 1.") and "1.0 GiB are free" in said


def test_each_has_a_gpu_of_its_own_where_there_are_two_of_a_kind(machine) -> None:
    assert machine(gpus=("A100",)) == []
    assert machine(gpus=("A100", "A100", "A100"), cores=1, free=0) == [Place("0"), Place("1")]
    assert machine(gpus=("A100", "A100"), visible="3, GPU-5f") == [Place("3"), Place("GPU-5f")]
    assert machine(gpus=("A100", "H100")) == []  # not the same digits
    assert machine(gpus=("A100", "A100"), device="cpu") == [Place(), Place()]
    assert machine(gpus=("A100", "A100"), processes=2) == []  # each break has both
