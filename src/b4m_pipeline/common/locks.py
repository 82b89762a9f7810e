"""One process at a time in a folder. The lock is the operating system's: it is free as soon as its process is gone, however
that ended."""

import json
import os
import platform
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

HOST = platform.node()
_LOCK, _HOLDER = ".lock", ".lock.json"


class BusyError(ValueError):
    """Another process works in the same folder."""


class FolderLock:
    """Held from `acquire` to `release`, or to the end of this process.

    folder: which the lock is for; it is made if it is not there. part: of a work that several processes share in it, each with
    a lock of its own.
    """

    def __init__(self, folder: Path, part: str = ""):
        self.folder = folder
        self.path = folder.absolute() / f"{_LOCK}{'-' if part else ''}{part}"
        self._holder = self.path.with_name(f"{_HOLDER}{'-' if part else ''}{part}")
        self._lock = FileLock(self.path, thread_local=False)

    def acquire(self, command: str, remedy: str) -> None:
        """Raise BusyError, which names who is at work and the remedy, if that is another process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(f"{self.folder} is in use by {self._told()}. {remedy}") from error
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": HOST, "since": since, "command": command}
        self._holder.write_text(json.dumps(about), encoding="utf-8")

    def release(self) -> None:
        self._holder.unlink(missing_ok=True)
        self._lock.release()

    def _told(self) -> str:
        """Who holds the lock, as far as is known: whoever just took it may not have written it down yet."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(self._holder.read_text(encoding="utf-8"))
            where = "" if about["host"] == HOST else f" on {about['host']}"
            return f"another process, {about['pid']}{where} (since {about['since']}: {about['command']})"
        return "another process"


def is_free(lock: Path) -> bool:
    """Whether nobody holds the lock with this path."""
    if not lock.is_file():
        return True
    probe = FileLock(lock)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return False
    probe.release()
    return True
