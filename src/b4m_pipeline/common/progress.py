"""Progress bars, drawn here or by the process that started this one."""

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm


@dataclass(frozen=True)
class Progress:
    """How far something is. done, total: optimizer steps or the like; figures: text beside the bar."""

    description: str
    done: int
    total: int
    figures: str


Tell = Callable[[Progress], None]
_tell: Tell | None = None


def draw_elsewhere(tell: Tell | None) -> None:
    """Hand all further progress of this process to `tell` instead of drawing it; None: draw it."""
    global _tell
    _tell = tell
    if tell:
        tqdm.set_lock(threading.RLock())  # its own is for several processes at one terminal, and lost if one is ended


class ProgressBar(tqdm):
    """tqdm's bar, drawn at most once a second."""

    def __init__(self, **options: Any):
        told = {"file": io.StringIO(), "disable": False} if _tell else {}
        super().__init__(mininterval=1.0, **options | told)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if _tell is None:
            return super().display(msg, pos)
        return _tell(Progress(self.desc.removesuffix(": "), self.n, self.total, self.postfix or ""))

    def show(self, progress: Progress) -> None:
        """Draw what another process has told."""
        self.n = progress.done
        self.set_postfix_str(progress.figures)
