"""The server's port, and its end."""

import http.client
import threading
import time
from types import SimpleNamespace

import pytest

from b4m_pipeline.studio import serve as module
from b4m_pipeline.studio.serve import HOST, PortError, bind, serve


def test_a_port_that_is_taken_is_said() -> None:
    with bind(0) as first:
        first.listen()
        with pytest.raises(PortError, match=f"Port {first.getsockname()[1]} of 127.0.0.1"):
            bind(first.getsockname()[1])


def test_it_listens_on_this_machine_alone_and_ends_its_run(monkeypatch) -> None:
    from fastapi import FastAPI

    closed, said, opened = [], [], []
    app = FastAPI()
    app.get("/")(lambda: {"ok": True})
    monkeypatch.setattr(module, "build", lambda studio: app)
    monkeypatch.setattr(module.webbrowser, "open", opened.append)
    studio = SimpleNamespace(runs=SimpleNamespace(close=lambda: closed.append(True) or "stopped"))
    import uvicorn

    servers = []
    made = uvicorn.Server
    monkeypatch.setattr(uvicorn, "Server", lambda config: servers.append(made(config)) or servers[0])
    listener = bind(0)
    assert listener.getsockname()[0] == HOST == "127.0.0.1"
    port = listener.getsockname()[1]
    thread = threading.Thread(target=serve, args=(studio, listener, said.append, True))
    thread.start()
    for _ in range(1200):
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            break
        except OSError:
            time.sleep(0.05)
    assert not closed
    servers[0].should_exit = True
    thread.join(60)
    assert closed == [True] and opened == [f"http://127.0.0.1:{port}"] and f":{port}" in said[0] and said[1:] == ["stopped"]
