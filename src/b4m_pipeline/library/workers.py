"""Functions that are called at once, each in a process of its own.

A process is one of multiprocessing's, begun anew ("spawn") on every system: torch's threads and GPUs outlive no fork. Between
it and this one is a line (a Pipe). It carries log records, those of progress among them, and, in the end, the result, so that
this process alone writes to the terminal. When this process closes its end, or is gone, the other one ends at once: checkpoints
are whole at any moment.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
START = "spawn"
"""How a process begins."""
_PATIENCE = 10  # seconds until a process that does not end is killed


class LostProcessError(ValueError):
    """A process ended without a result."""


@dataclass(frozen=True)
class _Setting:
    """What the processes take over from this one. levels: of loggers, by name, "" for the root."""

    threads: int
    run: str | None
    tracking_uri: str
    levels: dict[str, int]


class Workers(Generic[Result]):
    """functions: by name; each goes to its process, and its result back, by pickle. gpus: for each what CUDA_VISIBLE_DEVICES is
    there, None: as it is here. Close it, whatever happens."""

    def __init__(self, functions: Mapping[str, Callable[[], Result]], gpus: list[str | None]):
        context: Any = multiprocessing.get_context(START)
        setting = _take_over()
        self._names: dict[Connection, str] = {}
        self._processes: dict[str, Any] = {}
        self._futures: dict[str, Future[Result]] = {name: Future() for name in functions}
        try:
            for (name, function), gpu in zip(functions.items(), gpus, strict=True):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, pickle.dumps(function), setting, gpu), name=name)
                self._names[ours], self._processes[name] = name, process
                with _unheard_interrupts():
                    process.start()
                theirs.close()
        except BaseException:
            self.close()
            raise

    def result(self, name: str) -> Result:
        """Wait for one. Raises what it raised or, before that, what another one raised; LostProcessError."""
        while not self._futures[name].done():
            for line in wait(list(self._names)):
                self._hear(line)
            for other, future in self._futures.items():
                if other != name and future.done() and future.exception():
                    logger.error("%s has failed: %s is ended, and goes on from its checkpoint in the next run", other, name)
                    future.result()
        return self._futures[name].result()

    def _hear(self, line: Any) -> None:
        name = self._names[line]
        try:
            said = line.recv()
        except (EOFError, OSError):
            del self._names[line]
            if not self._futures[name].done():
                self._futures[name].set_exception(self._lost(name))
            return
        match said:
            case logging.LogRecord():
                if (own := logging.getLogger(said.name)).isEnabledFor(said.levelno):
                    own.handle(said)
            case "result", bytes(pickled):
                self._futures[name].set_result(pickle.loads(pickled))
            case "error", error:
                self._futures[name].set_exception(error)

    def _lost(self, name: str) -> LostProcessError:
        process = self._processes[name]
        process.join(_PATIENCE)
        return LostProcessError(
            f"the process of {name} was ended from outside (exit code {process.exitcode}), as it is where memory is short: the "
            "same command goes on from its checkpoint, with --runner=SequentialRunner one after the other"
        )

    def close(self) -> None:
        """End all that is still at work, at once."""
        for line in self._names:
            line.close()
        self._names.clear()
        for process in self._processes.values():
            if process.pid is not None:
                process.join(_PATIENCE)
                process.kill()
                process.join()


def _take_over() -> _Setting:
    import mlflow
    import torch

    from b4m_pipeline.registry.runs import current_run

    known = {name: own.level for name, own in logging.root.manager.loggerDict.items() if isinstance(own, logging.Logger)}
    levels = {name: level for name, level in known.items() if level} | {"": logging.getLogger(__name__).getEffectiveLevel()}
    return _Setting(torch.get_num_threads(), current_run(), mlflow.get_tracking_uri(), levels)


@contextlib.contextmanager
def _unheard_interrupts() -> Iterator[None]:
    """Processes that are begun here never hear a terminal's Ctrl-C, which is sent to all; this one hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: see _work
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Line:
    """A process's end, for its threads. It is a queue to QueueHandler, which makes a record fit to be sent."""

    def __init__(self, connection: Any):
        self._connection, self._lock = connection, threading.Lock()

    def put_nowait(self, said: Any) -> None:
        try:
            with self._lock:
                self._connection.send(said)
        except OSError:  # the other end is closed: see _end_with, which may not have noticed yet
            os._exit(1)


def _work(connection: Any, function: bytes, setting: _Setting, gpu: str | None) -> None:
    """What a process does."""
    for number in (signal.SIGINT, signal.SIGTERM):  # where all are sent it, the other process decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    line = _Line(connection)
    logging.root.handlers = [logging.NullHandler()]
    try:
        call = pickle.loads(function)  # what libraries say when they are imported, they have said to the other process
        logging.root.handlers = [QueueHandler(line)]  # type: ignore[arg-type]
        said: Any = "result", pickle.dumps(_called(call, setting))
    except BaseException as error:
        said = "error", _portable(error)
    line.put_nowait(said)


def _called(function: Callable[[], Any], setting: _Setting) -> Any:
    import torch

    from b4m_pipeline.registry.runs import taking_part

    torch.set_num_threads(setting.threads)
    with taking_part(setting.run, setting.tracking_uri):
        for name, level in setting.levels.items():  # libraries set their own when they are imported
            logging.getLogger(name).setLevel(level)
        return function()


def _end_with(connection: Any) -> None:
    """End this process when the other end is closed."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The error with its traceback as a note, or what can be said of it if it cannot be pickled."""
    error.add_note(f"In a process of its own:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of any kind: the error's class decides how it is pickled
        return RuntimeError(f"{type(error).__name__}: {error}\n{error.__notes__[-1]}")
    return error
