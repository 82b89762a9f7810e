"""The load test of a server: what it counts as answered, refused and lost."""

import base64
import io
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from benchmarks import serving


def png(side):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Server(BaseHTTPRequestHandler):
    """Answers as a served adapter should, or in the way that `fault` names."""

    fault, asked, pings = "", 0, 0

    def log_message(self, *_):
        pass

    def say(self, status, said, **headers):
        self.send_response(status)
        data = json.dumps(said).encode()
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        type(self).pings += 1
        self.say(500 if self.fault == "ill" and self.pings > 1 else 200, "")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        if len(body) > 512 * 1024:
            return self.say(413, {})
        if self.headers["Content-Type"] != "application/json":
            return self.say(415, {})
        try:
            request = json.loads(body)
            prompts, params = request["inputs"]["prompt"], request["params"]
            assert "sed" not in params and params.get("height", 32) <= 64 and all(isinstance(p, str) for p in prompts)
        except (ValueError, RecursionError, AssertionError):
            return self.say(200 if self.fault == "gullible" else 400, {})
        if self.fault == "busy" or (self.fault == "" and self.asked % 5 == 0):
            return self.say(429, {}, **({} if self.fault else {"Retry_After": "0"}))
        if self.fault == "broken":
            return self.close_connection
        pictures = [png(params.get("height", 32))] * (len(prompts) - (self.fault == "forgetful"))
        return self.say(200, {"predictions": pictures})


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("", ""),
        ("forgetful", "Wrong: "),
        ("broken", "Wrong: None: RemoteDisconnected"),
        ("busy", "Wrong: 429"),  # without a time
        ("ill", "Wrong: /ping: 500"),
        ("gullible", "Wrong: 200 instead of (400,)"),
    ],
)
def test_a_storm_counts_what_is_lost(monkeypatch, capsys, fault, told):
    monkeypatch.setattr(Server, "fault", fault)
    monkeypatch.setattr(Server, "asked", 0)
    monkeypatch.setattr(Server, "pings", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {"port": server.server_port, "clients": 3, "seconds": 0.6, "side": 32, "pid": os.getpid(), "max-growth": 500}
        code = serving.main([f"--{name}={value}" for name, value in options.items()])
        server.shutdown()
    shown = capsys.readouterr().out
    assert told in shown and code == bool(fault), shown
    if not fault:
        cells = [cell.strip() for cell in shown.splitlines()[2].split("|")[1:-1]]
        assert cells[0] == "3 clients" and int(cells[2]) > 5 and int(cells[3]) >= 1 and cells[4] == "0"
        assert "Memory " in shown


def test_growth_is_that_of_the_second_half():
    assert serving.growth([]) == 0 and serving.growth([100.0] * 8) == 0
    assert serving.growth([10.0, 50.0, *[100.0] * 20]) == 0  # what it takes to warm up is none
    assert serving.growth([100.0 + step for step in range(100)]) == pytest.approx(50, abs=1)


def test_without_a_server_it_says_so(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SystemExit):
        serving.main([f"--port={port}"])
    assert "no server answers" in capsys.readouterr().err
