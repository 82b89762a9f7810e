"""Commands in processes of their own that need not import torch, diffusers and MLflow first, which takes ten seconds each:
they are forked from one server that has imported the libraries, and nothing of this project. All processes of a test session
share it; it ends with the last of them."""

import contextlib
import importlib
import json
import multiprocessing
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

from filelock import FileLock

_LIBRARIES = [
    "torch", "torch._dynamo", "accelerate", "peft.tuners.lora", "pandas", "PIL.Image", "sqlalchemy", "alembic",
    "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl", "diffusers.pipelines.auto_pipeline",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.processing_clip",
    "mlflow", "mlflow.genai", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "kedro.framework.cli", "kedro.framework.session", "kedro_mlflow.framework.hooks",
]  # fmt: skip
_SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")[:12]
_ADDRESS = Path(tempfile.gettempdir()) / f"b4m-warm-{_SESSION}"
_LOG = _ADDRESS.with_suffix(".log")
_held: list[socket.socket] = []
"""This process's connection that keeps the server."""


class Process:
    """A command under way, as multiprocessing.Process has it."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self.pid = int(_line(connection))
        self.exitcode: int | None = None

    def join(self, timeout: float | None = None) -> None:
        if self.exitcode is None and select.select([self._connection], [], [], timeout)[0]:
            self.exitcode = int(_line(self._connection))
            self._connection.close()

    def is_alive(self) -> bool:
        self.join(0)
        return self.exitcode is None

    def kill(self) -> None:
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


def run(command: list[str], cwd: Path, environment: dict[str, str], timeout: float = 600) -> subprocess.CompletedProcess:
    """`kedro ...` or `python -c CODE`, as subprocess.run would do it. environment: the whole of it; PYTHONPATH is heeded.
    Variables that a library reads when it is imported do not count."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        process = start(command, cwd, environment, output, errors)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            said = [file.read_text() if file.exists() else "" for file in (output, errors)]
            raise subprocess.TimeoutExpired(command, timeout, *said)
        return subprocess.CompletedProcess(command, process.exitcode, output.read_text(), errors.read_text())


def start(command: list[str], cwd: Path, environment: dict[str, str], output: Path, errors: Path) -> Process:
    """See `run`; the process goes on until it ends or is killed. output, errors: files for what it writes."""
    hold()
    connection = _connect()
    _send(connection, command, str(cwd), environment, str(output), str(errors))
    return Process(connection)


def hold() -> None:
    """Have the server, and keep it until this process ends. It imports while this process goes on."""
    if _held:
        return
    with FileLock(f"{_ADDRESS}.lock"):
        try:
            connection = _connect()
        except OSError:  # none yet, or one that has ended
            _ADDRESS.unlink(missing_ok=True)
            with _LOG.open("w") as log:
                subprocess.Popen(
                    [sys.executable, "-m", "tests.warm"], cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, env=os.environ | {"PYTEST_XDIST_TESTRUNUID": _SESSION}, start_new_session=True,
                )  # fmt: skip
            connection = _wait()
        _send(connection)
        _held.append(connection)


def _wait(seconds: float = 120) -> socket.socket:
    end = time.monotonic() + seconds
    while True:
        try:
            return _connect()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(_ADDRESS))
    except OSError:
        connection.close()
        raise
    return connection


def _send(connection: socket.socket, *given) -> None:
    connection.sendall(json.dumps(given).encode() + b"\n")


def _line(connection: socket.socket) -> bytes:
    """The next one, and not a byte more, so that select knows of those that follow."""
    line = b""
    while not line.endswith(b"\n"):
        line += (byte := connection.recv(1))
        if not byte:
            raise ConnectionError(f"the server of warm processes has ended: see {_LOG}")
    return line


def _serve() -> None:
    """A connection that asks for nothing holds the server; one that brings a command is told its process and its exit code."""
    fork, holding = multiprocessing.get_context("fork"), 0
    with selectors.DefaultSelector() as events, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(_ADDRESS))
        _ADDRESS.chmod(0o600)
        listener.listen(64)
        for library in _LIBRARIES:
            importlib.import_module(library)
        requirements_utils = importlib.import_module("mlflow.utils.requirements_utils")
        requirements_utils._init_packages_to_modules_map()  # which the first registration does, for seconds
        events.register(listener, selectors.EVENT_READ, None)
        while True:
            for key, _ in events.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    given = json.loads(_line(connection))
                    if given:
                        process = fork.Process(target=_run, args=given)
                        process.start()
                        events.register(process.sentinel, selectors.EVENT_READ, (process, connection))
                        connection.sendall(b"%d\n" % process.pid)
                    else:
                        holding += 1
                        events.register(connection, selectors.EVENT_READ, None)
                    continue
                events.unregister(key.fileobj)
                if key.data is None:
                    key.fileobj.close()
                    holding -= 1
                else:
                    process, connection = key.data
                    process.join()
                    with contextlib.suppress(OSError):  # nobody waits for it any more
                        connection.sendall(b"%d\n" % process.exitcode)
                    connection.close()
            if not holding:
                for file in (_ADDRESS, _LOG, _ADDRESS.with_suffix(".lock")):
                    file.unlink(missing_ok=True)
                os._exit(0)  # what is still under way is not waited for


def _run(command: list[str], cwd: str, environment: dict[str, str], output: str, errors: str) -> None:
    for stream, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    sys.modules["__main__"] = types.ModuleType("__main__")  # not this one, which a process that is spawned would import
    multiprocessing.set_start_method(None, force=True)  # as in any other process
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    inherited = [path for path in sys.path if "site-packages" in path or path.startswith(sys.base_prefix)]
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *inherited]
    match command:
        case ["kedro", *arguments]:
            from kedro.framework.cli import main

            sys.argv = ["kedro", *arguments]
            main()
        case ["python", "-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case _:
            raise ValueError(f"neither kedro nor python -c: {command}")


if __name__ == "__main__":
    _serve()
