"""Start the server on this machine, and open the page."""

import contextlib
import logging
import socket
import sys
import webbrowser
from collections.abc import Callable

from b4m_pipeline.studio.app import Studio, build

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"


class PortError(ValueError):
    """The port is another program's."""


def bind(port: int) -> socket.socket:
    """A socket of HOST on the port (0: any). Raises PortError if another program has it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform != "win32":  # where it would let two programs have one port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise PortError(f"Port {port} of {HOST} cannot be had ({error.strerror}): another studio? Use --port") from error
    return listener


def serve(studio: Studio, listener: socket.socket, say: Callable[[str], None], browser: bool) -> None:
    """Answer until Ctrl-C; a run that is under way is ended then, and can be gone on with."""
    import uvicorn

    address = f"http://{HOST}:{listener.getsockname()[1]}"
    say(f"The studio is at {address}; Ctrl-C ends it.")
    if browser:
        webbrowser.open(address)
    server = uvicorn.Server(uvicorn.Config(build(studio), log_level="warning", timeout_graceful_shutdown=3))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        if told := studio.runs.close():
            say(told)
