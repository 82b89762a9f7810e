import io
import logging
import sys
import threading

import pytest

from b4m_pipeline.common import progress as module
from b4m_pipeline.common.progress import Progress, batches, duration, estimate, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when it is told to."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def as_terminal(monkeypatch) -> Terminal:
    """stderr as a terminal, on which bars are drawn at once."""
    own = Terminal()
    monkeypatch.setattr(sys, "stderr", own)
    monkeypatch.setattr(module, "DELAY", 0)
    return own


def test_without_a_terminal_a_line_comes_now_and_then_with_the_time_left(caplog, clock) -> None:
    with caplog.at_level(logging.INFO), Progress("content break", 100, done=20) as bar:
        for _ in range(60):
            clock[0] += 1
            bar.update(1, {"content": 0.5})
    assert caplog.messages == ["content break: 50 of 100, about 50 s left", "content break: 80 of 100, about 20 s left"]


def test_of_processes_that_share_a_training_one_shows_it(caplog, clock) -> None:
    with caplog.at_level(logging.INFO), Progress("content break", 100, shown=False) as bar:
        for _ in range(60):
            clock[0] += 1
            bar.update()
    assert not caplog.messages and not module._open


def test_what_takes_less_time_says_nothing(caplog, clock) -> None:
    with caplog.at_level(logging.INFO):
        assert list(progress([1, 2, 3], "reading", 3)) == [1, 2, 3]
        assert [(each.start, each.stop) for each in batches(5, 2, "measuring")] == [(0, 2), (2, 4), (4, 5)]
    assert not caplog.messages


def test_one_bar_at_a_time(monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    with Progress("outer", 2) as outer:
        with Progress("inner", 2) as inner:
            inner.update()
        outer.update(1, {"loss": 0.25})
        outer._bar.refresh()
    said = terminal.getvalue()
    assert "outer" in said and "loss=0.2500" in said and "inner" not in said
    assert said.rsplit("\r", 1)[1] == ""  # the bar is gone, the stage's line says what came of it


def test_work_in_two_threads_goes_on_with_lines(monkeypatch, caplog) -> None:
    """The first one's bar ends when the second begins."""
    terminal = as_terminal(monkeypatch)
    with Progress("content break", 2) as first:
        assert first._bar is not None

        def second() -> None:
            with Progress("style break", 2) as other:
                assert other._bar is None and first._bar is None

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        first.update()
    assert "style break" not in terminal.getvalue() and not module._open


def test_a_line_of_the_log_stands_above_the_bar(monkeypatch) -> None:
    terminal = as_terminal(monkeypatch)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        with Progress("make", 2) as bar:
            bar._bar.refresh()
            logging.getLogger("b4m_pipeline").warning("look at this")
    finally:
        logging.getLogger().removeHandler(handler)
    before = terminal.getvalue().split("look at this\n")[0]
    assert before.endswith("\r")  # the bar was wiped first


def test_an_estimate_needs_a_measure_and_counts_only_what_was_done_here(clock) -> None:
    assert estimate("never done", 10) is None
    with Progress("drawing of a test", 12, done=2, cost=5) as bar:
        for _ in range(10):
            clock[0] += 3
            bar.update()
    assert estimate("drawing of a test", 4, cost=10) == pytest.approx(4 * 10 * 3 / 5)
    with Progress("nothing of a test", 12, done=12):
        pass
    assert estimate("nothing of a test", 4) is None


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (89, "89 s"), (130, "2 min"), (5400, "1 h 30 min")])
def test_a_duration_is_said_in_the_unit_that_fits(seconds, said) -> None:
    assert duration(seconds) == said
