"""The line in which requests take turns."""

import threading
import time

import pytest

from b4m_pipeline.registry.turns import LeftError, Line, LineFullError, TimeUpError


def test_one_draws_at_a_time_and_each_goes_to_the_end_after_a_turn():
    line, order, inside = Line(), [], []

    def draw(name, turns):
        with line.place(10, 9) as place:
            joined[name].set()
            for _ in range(turns):
                with line.turn(place):
                    inside.append(name)
                    assert len(inside) == 1
                    order.append(name)
                    everybody.wait(5)
                    inside.remove(name)

    joined, everybody = {name: threading.Event() for name in "abc"}, threading.Event()
    threads = [threading.Thread(target=draw, args=(name, turns)) for name, turns in (("a", 3), ("b", 1), ("c", 2))]
    for name, thread in zip("abc", threads, strict=True):
        thread.start()
        joined[name].wait(5)
    everybody.set()
    for thread in threads:
        thread.join(5)
    assert "".join(order) == "abcaca" and not line._places


def test_no_more_wait_than_may():
    line = Line()
    with line.place(10, 0):
        with (
            pytest.raises(LineFullError, match="0 requests are waiting and no more are taken: try again in 1 s"),
            line.place(1, 0),
        ):
            pass
        with line.place(10, 1), pytest.raises(LineFullError, match="1 requests are waiting") as error, line.place(1, 1):
            pass
        assert error.value.retry_after == 2
    with line.place(10, 0):
        pass


def test_time_and_patience_run_out_while_waiting(monkeypatch):
    line, left = Line(), threading.Event()
    monkeypatch.setattr(line, "_seconds", 0.0)
    with line.place(10, 9) as first, line.turn(first):
        with line.place(0.05, 9) as late, pytest.raises(TimeUpError), line.turn(late):
            pass
        threading.Timer(0.05, left.set).start()
        begun = time.monotonic()
        with line.place(10, 9, left.is_set) as gone, pytest.raises(LeftError), line.turn(gone):
            pass
        assert time.monotonic() - begun < 2
    assert not line._places


def test_a_turn_that_fails_gives_the_next_one_its_own():
    line = Line()

    def fail():
        with line.place(10, 9) as place, line.turn(place):
            second.start()
            raise ZeroDivisionError

    def draw():
        with line.place(10, 9) as place, line.turn(place):
            drawn.set()

    second, drawn = threading.Thread(target=draw), threading.Event()
    with pytest.raises(ZeroDivisionError):
        fail()
    second.join(5)
    assert drawn.is_set() and not line._places


def test_the_time_to_come_again_follows_the_turns():
    line = Line()
    for _ in range(30):
        with line.place(10, 9) as place, line.turn(place):
            pass
    assert line.retry_after == 1


def test_nobody_is_let_in_whose_turn_would_not_come_in_time(monkeypatch):
    line = Line()
    monkeypatch.setattr(line, "_seconds", 20.0)
    with line.place(10, 9):  # nobody is before it
        with line.place(40, 9), pytest.raises(LineFullError, match="1 requests are waiting .* in 40 s"), line.place(57, 9):
            pass
        with pytest.raises(LineFullError, match="0 requests are waiting .* in 20 s"), line.place(39, 9):
            pass


def test_a_turn_that_ran_out_of_time_counts_and_one_that_was_left_does_not(monkeypatch):
    line = Line()
    times = iter([0.0, 0.0, 0.0, 31.0, 31.0, 31.0, 31.0, 99.0])
    monkeypatch.setattr("b4m_pipeline.registry.turns.time.monotonic", lambda: next(times))

    def stopped(error):
        with line.place(10, 9) as place, line.turn(place):
            raise error

    with pytest.raises(TimeUpError):
        stopped(TimeUpError())
    assert line.retry_after == 1 and line._seconds == pytest.approx(10)
    with pytest.raises(LeftError):
        stopped(LeftError())
    assert line._seconds == pytest.approx(10)
