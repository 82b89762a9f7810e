"""How far work is, for who watches it: one bar at a time on a terminal, otherwise, and where several things are done at once, a
line now and then. What has been done says how long the like of it takes."""

import logging
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

DELAY = 2.0  # seconds before anything is shown: what takes less needs no bar
EVERY = 30.0  # seconds between two lines

_lock = threading.Lock()
_open: list["Progress"] = []
_speeds: dict[str, float] = {}


class Progress:
    """Context manager that is told of steps. Inside another one of its thread it shows nothing."""

    def __init__(self, what: str, total: int, done: int = 0, cost: float = 1.0, shown: bool = True):
        """what: said before the figures. done: steps that are not done here. cost: of a step, to compare it with others of the
        same name. shown: False where another process shows the same."""
        self.what, self.total, self.done, self._first, self._cost = what, total, done, done, cost
        self._thread, self._shown = threading.get_ident(), shown
        self._bar: tqdm | None = None
        self._lines = ExitStack()

    def __enter__(self) -> "Progress":
        self._begun = self._told = time.monotonic()
        with _lock:
            self._inner = not self._shown or any(each._thread == self._thread for each in _open)
            if not self._inner:
                alone = not _open and multiprocessing.parent_process() is None
                for each in _open:
                    each._drop_bar()
                _open.append(self)
                if alone and sys.stderr.isatty():
                    self._lines.enter_context(logging_redirect_tqdm())  # lines above the bar, not through it
                    self._bar = tqdm(
                        desc=self.what, total=self.total, initial=self.done, mininterval=0.5, delay=DELAY, leave=False
                    )
        return self

    def update(self, steps: int = 1, figures: dict[str, float] | None = None) -> None:
        """So many steps more; figures: shown beside the bar."""
        self.done += steps
        if bar := self._bar:
            if figures:
                bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()}, refresh=False)
            bar.update(steps)
        elif not self._inner and time.monotonic() - self._told >= EVERY and self.done < self.total:
            self._told = time.monotonic()
            left = (self.total - self.done) * (self._told - self._begun) / (self.done - self._first)
            logger.info("%s: %d of %d, about %s left", self.what, self.done, self.total, duration(left))

    def _drop_bar(self) -> None:
        """Go on with lines."""
        if self._bar:
            self._bar.close()
            self._lines.close()
            self._bar = None

    def __exit__(self, *exception: object) -> None:
        with _lock:
            self._drop_bar()
            if not self._inner:
                _open.remove(self)
            if self.done > self._first:
                seconds = (time.monotonic() - self._begun) / (self.done - self._first)
                _speeds[self.what] = seconds / self._cost


def progress(items: Iterable[Item], what: str, total: int, cost: float = 1.0) -> Iterator[Item]:
    """The items, one step each. total: how many there are."""
    with Progress(what, total, cost=cost) as bar:
        for item in items:
            yield item
            bar.update()


def batches(total: int, size: int, what: str) -> Iterator[slice]:
    """Slices of so many items at most, one after the other."""
    with Progress(what, total) as bar:
        for start in range(0, total, size):
            own = slice(start, min(start + size, total))
            yield own
            bar.update(own.stop - own.start)


def estimate(what: str, steps: int, cost: float = 1.0) -> float | None:
    """Seconds that so many steps will take by the last ones of this name in this process; None if there were none."""
    speed = _speeds.get(what)
    return None if speed is None else speed * steps * cost


def duration(seconds: float) -> str:
    """In the unit that one would say it in."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
