"""Who draws when: one request at a time, a batch each in turn, so many waiting at most, and none longer than its time."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_UP = 0.5  # seconds between looks at whether somebody who waits has left
_FIRST_GUESS = 1.0  # seconds that a turn takes, before the first was measured


class LineFullError(RuntimeError):
    """Too many are waiting. retry_after: seconds after which it makes sense to ask again."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} requests are waiting and no more are taken: try again in {retry_after} s")
        self.retry_after = retry_after


class TimeUpError(RuntimeError):
    """A request's time was up before it was answered."""


class LeftError(RuntimeError):
    """Whoever asked is not there any more."""


class Place:
    """A request's place in the line."""

    def __init__(self, seconds: float, left: Callable[[], bool] = lambda: False):
        self._deadline = time.monotonic() + seconds
        self._left = left

    @property
    def rest(self) -> float:
        """Seconds that are left."""
        return self._deadline - time.monotonic()

    def require_time(self) -> None:
        """Raise TimeUpError if the time is up, LeftError if whoever asked has left."""
        if self.rest <= 0:
            raise TimeUpError("the time is up")
        if self._left():
            raise LeftError("the client has left")


class Line:
    """The requests in the order of their turns; the first one draws. Each draws a batch and goes to the end, so that a large
    request holds up a small one for a batch and no longer."""

    def __init__(self) -> None:
        self._places: deque[Place] = deque()
        self._changed = threading.Condition()
        self._seconds = _FIRST_GUESS  # of a turn, smoothed

    @property
    def retry_after(self) -> int:
        """Seconds in which those in the line will have had a turn, at least 1."""
        return max(1, math.ceil(self._seconds * len(self._places)))

    def require_room(self, seconds: float, most_waiting: float) -> None:
        """Raise LineFullError if so many are waiting, or if a turn would hardly come and end within `seconds`: who is let in
        and not drawn in time costs the others theirs. Where nobody is before it, a request is always let in."""
        before = len(self._places)
        if before and (before > most_waiting or self._seconds * (before + 1) > seconds):
            raise LineFullError(before - 1, self.retry_after)

    @contextmanager
    def place(self, seconds: float, most_waiting: float, left: Callable[[], bool] = lambda: False) -> Iterator[Place]:
        """A place in the line for as long as the context lasts. seconds: how long it may last; most_waiting: how many others
        may wait at most; left: whether whoever asked has left. Raises LineFullError."""
        place = Place(seconds, left)
        with self._changed:
            self.require_room(seconds, most_waiting)
            self._places.append(place)
        try:
            yield place
        finally:
            with self._changed:
                self._places.remove(place)
                self._changed.notify_all()

    @contextmanager
    def turn(self, place: Place) -> Iterator[None]:
        """Wait for the place's turn, and let the next one have its own afterwards. Raises TimeUpError or LeftError."""
        with self._changed:
            while self._places[0] is not place:
                place.require_time()
                self._changed.wait(max(0.0, min(_LOOK_UP, place.rest)))
        place.require_time()
        begun = time.monotonic()
        try:
            yield
        except TimeUpError:
            self._measure(begun)
            raise
        with self._changed:
            self._measure(begun)
            self._places.rotate(-1)
            self._changed.notify_all()

    def _measure(self, begun: float) -> None:
        self._seconds += 0.3 * (time.monotonic() - begun - self._seconds)
