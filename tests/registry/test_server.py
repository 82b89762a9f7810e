"""The guard around MLflow's server: what passes, what is refused before it is read, and what happens under load."""

import asyncio
import io
import json
import os
import threading

import mlflow.pyfunc
import pytest
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from PIL import Image

from b4m_pipeline.registry import server, serving
from tests.conftest import PIXELS
from tests.registry.helpers import guarded_app, post, send

ASKED = json.dumps({"inputs": {"prompt": ["a toy"]}, "params": {"seed": 3}}).encode()


@pytest.fixture(scope="module")
def guard(tiny_sdxl, tmp_path_factory):
    with guarded_app(tiny_sdxl, tmp_path_factory.mktemp("served")) as app:
        yield app


def test_pictures_come_through_and_health_is_mlflows(guard):
    import base64

    said = post(guard, ASKED)
    assert said.status == 200
    (text,) = said.json["predictions"]
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (PIXELS, PIXELS)
    in_pieces = post(guard, [ASKED[:7], ASKED[7:20], ASKED[20:]], kind="application/json; charset=utf-8")
    assert in_pieces.json == said.json
    assert post(guard, b"", path="/ping", method="GET").status == 200
    assert post(guard, b"", path="/nowhere", method="GET").status == 404
    assert post(guard, b"", method="GET").status == 405


def test_a_body_that_is_too_large_is_refused_and_not_kept(guard):
    seen = []

    class Counted(bytes):
        def __len__(self):
            seen.append(1)
            return super().__len__()

    said = post(guard, [Counted(65536)] * 100)
    assert said.status == 413 and said.json == {"message": "the request has more than 512 KiB"} and len(seen) >= 100


def test_a_body_that_does_not_come_is_given_up(guard, monkeypatch):
    monkeypatch.setattr(server, "SECONDS_FOR_BODY", 0.05)

    async def slow() -> int:
        answer = []

        async def receive():
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def take(message):
            answer.append(message)

        await guard({"type": "http", "method": "POST", "path": "/invocations", "headers": []}, receive, take)
        return answer[0]["status"]

    assert asyncio.run(slow()) == 408


def test_so_many_are_open_at_most(guard, monkeypatch):
    monkeypatch.setattr(server, "MAX_OPEN", 0)
    said = post(guard, ASKED)
    assert said.status == 429 and int(said.headers["retry-after"]) >= 1 and "Too many" in said.json["message"]
    assert guard._open == 0


def test_a_full_line_is_said_with_a_time_while_health_answers(guard):
    line = guard._served.line
    places = [line.place(60, 99) for _ in range(serving.MAX_WAITING + 1)]
    for place in places:
        place.__enter__()
    try:
        said = post(guard, ASKED)
        assert said.status == 429 and int(said.headers["retry-after"]) >= 1
        assert "requests are waiting" in said.json["message"]
        assert post(guard, b"", path="/health", method="GET").status == 200
    finally:
        for place in places:
            place.__exit__(None, None, None)
    assert post(guard, ASKED).status == 200


def test_a_time_that_is_up_is_said_with_a_time(guard, monkeypatch):
    monkeypatch.setenv(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name, "0")
    said = post(guard, ASKED)
    assert said.status == 503 and int(said.headers["retry-after"]) >= 1
    assert said.json["message"].startswith("0 of 1 pictures were drawn")


def test_nothing_is_drawn_on_for_a_client_that_left(guard, monkeypatch):
    begun, step = threading.Event(), threading.Event()
    steps = []

    def draw(requests, settings, wanted, require_time):
        begun.set()
        for _ in range(100):
            steps.append(1)
            step.wait(0.02)
            require_time()
        return [b""]

    monkeypatch.setattr(guard._served, "_draw", draw)

    async def leave_early():
        leave = asyncio.Event()
        asking = asyncio.ensure_future(send(guard, ASKED, leave=leave))
        await asyncio.to_thread(begun.wait, 5)
        leave.set()
        return await asking

    asyncio.run(leave_early())
    for _ in range(200):
        if not guard._served.line._places:
            break
        step.wait(0.01)
    assert not guard._served.line._places and len(steps) < 50


def test_twenty_at_once_are_all_answered_and_health_with_them(guard):
    async def storm():
        asked = [send(guard, ASKED) for _ in range(20)]
        health = [send(guard, b"", path="/ping", method="GET") for _ in range(5)]
        return await asyncio.gather(*asked), await asyncio.gather(*health)

    answers, health = asyncio.run(storm())
    statuses = [said.status for said in answers]
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 1 and [said.status for said in health] == [200] * 5
    assert all("retry-after" in said.headers for said in answers if said.status == 429)
    assert len({said.body for said in answers if said.status == 200}) == 1
    assert guard._open == 0 and not guard._served.line._places


def test_a_model_of_another_loader_is_refused(tmp_path, monkeypatch):
    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=Other(), pip_requirements=[])
    monkeypatch.setenv(server.MODEL, str(tmp_path / "model"))
    with pytest.raises(serving.ServingError, match="register its weights again"):
        server.create_app()


@pytest.mark.parametrize("others", [False, True])
def test_other_adapters_are_allowed_only_where_it_is_said(others, monkeypatch):
    for name in (server.MODEL, MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name, serving.OTHERS, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda uri: "folder")
    monkeypatch.setattr(server, "create_app", lambda: None)
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    server.run("models:/b4m-make-a-b@champion", "127.0.0.1", 1, 60, 1, others)
    assert os.environ[serving.OTHERS] == str(int(others))
