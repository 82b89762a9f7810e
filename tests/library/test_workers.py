"""Functions in processes of their own: results, errors, logs and progress come back, no process outlives its use. The processes
are forked from one that has imported the libraries; a slow test of test_halves.py begins them as a run does."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from b4m_pipeline.common import progress
from b4m_pipeline.library import workers
from b4m_pipeline.library.workers import LostProcessError, Workers

logger = logging.getLogger("b4m_pipeline.of_test")


@pytest.fixture
def forked(monkeypatch) -> None:
    """Processes begin with the libraries imported."""
    multiprocessing.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "b4m_pipeline.training.stages"])
    forkserver.ensure_running()
    monkeypatch.setattr(workers, "START", "forkserver")


@pytest.fixture
def begun(forked):
    """Functions by name -> Workers, which are closed in the end."""
    with contextlib.ExitStack() as stack:

        def begin(**functions) -> Workers:
            found = Workers(functions, [None] * len(functions))
            stack.callback(found.close)
            return found

        yield begin


def work(name: str) -> dict:
    import torch

    logger.debug("not for anybody")
    logger.info("%s is at work", name)
    logging.getLogger("other").info("of another library")
    progress.EVERY = 0.0
    with progress.Progress(name, 2) as bar:
        for _ in range(2):
            bar.update()
    return {"name": name, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": torch.get_num_threads()}


def test_results_logs_and_progress_come_back(forked, monkeypatch, caplog, capfd) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with caplog.at_level(logging.INFO, "b4m_pipeline"):
        both = Workers({"a": partial(work, "one"), "b": partial(work, "two")}, [None, "7"])
        results = [both.result(name) for name in ("b", "a")]
        both.close()
    assert results == [{"name": "two", "gpu": "7", "threads": 3}, {"name": "one", "gpu": None, "threads": 3}]
    lines = [f"{name}{said}" for name in ("one", "two") for said in (" is at work", ": 1 of 2, about 1 s left")]
    assert sorted(record.getMessage() for record in caplog.records) == lines
    assert "it/s" not in capfd.readouterr().err  # no bars beside the lines


def stay(folder: Path, name: str) -> None:
    (folder / name).write_text(str(os.getpid()))
    time.sleep(60)


def pids(folder: Path, *names: str) -> list[int]:
    """Of processes that have written it down."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return [int((folder / name).read_text()) for name in names]
        time.sleep(0.02)
    raise AssertionError(f"{names} have not begun")


def gone(*processes: int, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(psutil.pid_exists, processes)):
            return True
        time.sleep(0.02)
    return False


def fail(folder: Path, other: str) -> None:
    pids(folder, other)
    raise LookupError("no such thing")


def test_an_error_in_one_ends_the_other(begun, tmp_path, caplog) -> None:
    both = begun(a=partial(stay, tmp_path, "a"), b=partial(fail, tmp_path, "a"))
    with pytest.raises(LookupError) as caught:
        both.result("a")
    assert str(caught.value) == "no such thing" and "in fail" in caught.value.__notes__[0]  # where it was raised
    assert "b has failed: a is ended, and goes on from its checkpoint" in caplog.text
    both.close()
    assert gone(*pids(tmp_path, "a"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_ended_from_outside_is_one_error(begun) -> None:
    with pytest.raises(
        LostProcessError, match=r"^the process of a was ended from outside \(exit code -9\), as it is where"
    ) as e:
        begun(a=die).result("a")
    assert "\n" not in str(e.value)


class OddError(Exception):
    """Cannot be made from its text."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_odd() -> None:
    raise OddError(1, 2)


def test_an_error_that_cannot_be_pickled_is_told(begun) -> None:
    with pytest.raises(RuntimeError, match="^OddError: 1 and 2\nIn a process of its own:\n"):
        begun(a=raise_odd).result("a")


def interrupted() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "unhurt"


def test_a_terminals_interrupt_is_not_for_them(begun) -> None:
    assert begun(a=interrupted).result("a") == "unhurt"


def test_an_interrupt_ends_all_at_once(begun, tmp_path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    both = begun(a=partial(stay, tmp_path, "a"), b=partial(stay, tmp_path, "b"))
    started = pids(tmp_path, "a", "b")
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        both.result("a")
    begin = time.monotonic()
    both.close()
    assert gone(*started) and time.monotonic() - begin < 3


class Announced:
    """Writes down in which process it was unpickled, and does nothing."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return announce, (self.file,)


def announce(file: Path):
    file.write_text(str(os.getpid()))
    return partial(time.sleep, 60)


def begin_and_wait(folder: Path) -> None:
    """A process that is killed while others work for it, which begin as in a run."""
    Workers({name: Announced(folder / name) for name in ("a", "b")}, [None, None]).result("a")


def test_none_outlives_a_killed_parent(forked, tmp_path) -> None:
    parent = multiprocessing.get_context("forkserver").Process(target=begin_and_wait, args=(tmp_path,))
    parent.start()
    started = pids(tmp_path, "a", "b")
    parent.kill()
    parent.join()
    assert gone(*started)
