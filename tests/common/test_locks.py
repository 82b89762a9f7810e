"""One process at a time in a folder."""

import multiprocessing
import os
import re
import signal
import time

import pytest

from b4m_pipeline.common.locks import BusyError, FolderLock, is_free


def hold(folder, ready) -> None:
    lock = FolderLock(folder)
    lock.acquire("kedro run --pipelines=library", "")
    ready.send(os.getpid())
    ready.recv()


def test_a_second_process_is_told_who_is_at_work_and_gets_in_when_that_was_killed(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=hold, args=(tmp_path / "data", theirs))
    other.start()
    pid, lock = ours.recv(), FolderLock(tmp_path / "data")
    told = rf"data is in use by another process, {pid} \(since 20.*: kedro run --pipelines=library\)\. Wait\."
    with pytest.raises(BusyError, match=told):
        lock.acquire("kedro run", "Wait.")
    assert not is_free(lock.path)
    other.kill()
    other.join()
    assert is_free(lock.path)
    lock.acquire("kedro run", "Wait.")
    assert not is_free(lock.path)
    lock.release()
    assert is_free(lock.path)


def test_parts_of_one_work_do_not_wait_for_each_other(tmp_path) -> None:
    first, second = FolderLock(tmp_path, "1-of-2"), FolderLock(tmp_path, "2-of-2")
    first.acquire("a", "")
    second.acquire("b", "")
    with pytest.raises(BusyError, match=re.escape(str(tmp_path))):
        FolderLock(tmp_path, "1-of-2").acquire("c", "")
    first.release()
    second.release()


def test_a_lock_whose_holder_is_not_known_is_still_refused(tmp_path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire("a", "")
    (tmp_path / ".lock.json").write_text("{")
    with pytest.raises(BusyError, match="in use by another process. Go away."):
        FolderLock(tmp_path).acquire("b", "Go away.")
    lock.release()


def hold_and_fork(folder, ready) -> None:
    lock = FolderLock(folder)
    lock.acquire("kedro run --runner=ParallelRunner", "")
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    ready.send(child)
    ready.recv()


def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=hold_and_fork, args=(tmp_path, theirs))
    other.start()
    child = ours.recv()
    assert not is_free(tmp_path / ".lock")
    other.kill()
    other.join()
    try:
        assert is_free(tmp_path / ".lock")
    finally:
        os.kill(child, signal.SIGKILL)
