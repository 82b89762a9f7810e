"""MLflow's scoring server behind a guard: what a served adapter cannot know by itself is bounded here.

MLflow's server reads bodies of any size, ignores params that it does not know, names no time after which to ask again, and
draws for clients that have left. `kedro serve` runs this one; `mlflow models serve` runs MLflow's alone.
"""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from difflib import get_close_matches
from typing import Any

import mlflow.pyfunc
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.protos.databricks_pb2 import RESOURCE_EXHAUSTED
from mlflow.pyfunc import scoring_server

from b4m_pipeline.registry.bounds import Answer, ServingError, refused, require_prompts, require_work, shown
from b4m_pipeline.registry.serving import OTHERS, ServedAdapter, client_left, patience
from b4m_pipeline.registry.turns import LineFullError

logger = logging.getLogger(__name__)

MODEL = "B4M_SERVED_MODEL"
"""Environment variable with the folder of the model that `create_app` serves."""
MAX_BYTES = 512 * 1024
"""Of a request's body: all prompts at their longest, escaped."""
MAX_OPEN = 64
"""Requests whose bodies are read or that are answered at the same time."""
SECONDS_FOR_BODY = 10.0
_PATH = "/invocations"
_FORMATS = ("inputs", "instances", "dataframe_records", "dataframe_split")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def create_app() -> App:
    """What uvicorn serves: the model in the folder MODEL. Raises ServingError for a model of another kind."""
    model = mlflow.pyfunc.load_model(os.environ[MODEL])
    served = model._model_impl
    if not isinstance(served, ServedAdapter):
        raise ServingError(
            f"{os.environ[MODEL]} was logged without this project's loader: register its weights again (kedro register FOLDER)"
        )
    return Guard(scoring_server.init(model), served, [spec.name for spec in model.metadata.get_params_schema().params])


def run(uri: str, host: str, port: int, seconds: int, workers: int, others: bool = False) -> None:
    """Serve a registered adapter until the process is ended. seconds: what a request may take; others: whether one
    may name another adapter of the registry. Raises as `create_app`,
    MlflowException if there is no such adapter."""
    import uvicorn

    os.environ[MODEL] = mlflow.artifacts.download_artifacts(uri)
    os.environ[MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name] = str(seconds)
    os.environ[OTHERS] = str(int(others))
    os.environ["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()  # for further processes, which look others up
    app = create_app() if workers == 1 else f"{__name__}:{create_app.__name__}"
    logger.info("Serving %s at http://%s:%d%s", uri, host, port, _PATH)
    settings: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": seconds}
    uvicorn.run(app, host=host, port=port, workers=workers, factory=workers > 1, **settings)


class Guard:
    """An ASGI application around MLflow's: refuses in one line what cannot be drawn before a thread is spent on it, and passes
    the rest on."""

    def __init__(self, app: App, served: ServedAdapter, names: list[str]):
        """names: the params that the adapter has."""
        self._app, self._served, self._names = app, served, names
        self._open = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        self._open += 1
        try:
            if self._open > MAX_OPEN:
                raise Answer("Too many requests are open: try again later", RESOURCE_EXHAUSTED, self._served.line.retry_after)
            body = await _body(receive)
            if body is None:
                return await _answer(send, 413, {"message": f"the request has more than {MAX_BYTES // 1024} KiB"})
            kind = dict(scope["headers"]).get(b"content-type", b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                return await _answer(send, 415, {"message": "a request is JSON: its content type is application/json"})
            body = self._checked(body)
        except TimeoutError:
            return await _answer(send, 408, {"message": f"the request did not come within {SECONDS_FOR_BODY:.0f} s"})
        except LineFullError as error:
            full = Answer(str(error), RESOURCE_EXHAUSTED, error.retry_after)
            return await _answer(send, 429, json.loads(full.serialize_as_json()), full.retry_after)
        except Answer as answer:
            said = json.loads(answer.serialize_as_json())
            return await _answer(send, answer.get_http_status_code(), said, answer.retry_after)
        else:
            return await self._pass_on(scope, body, receive, send)
        finally:
            self._open -= 1

    def _checked(self, body: bytes) -> bytes:
        """The request in one of the forms that MLflow takes, whatever it came in. Raises Answer for what cannot be drawn,
        LineFullError if there is no room."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise refused("the request is no JSON that can be read") from error
        prompts = require_prompts(_prompts(asked))
        params = {} if asked.get("params") is None else asked["params"]
        if not isinstance(params, dict):
            raise refused(f"params are an object, got {shown(params)}")
        for name in set(params) - set(self._names):
            near = get_close_matches(name, self._names, n=1)
            raise refused(f"params have no {shown(name)}; {f'did you mean {near[0]}?' if near else f'they have {self._names}'}")
        wanted = self._served.check(params)
        require_work(len(prompts), wanted, self._served.resolution)
        self._served.line.require_room(*patience())
        given = {name for name, value in params.items() if value is not None}
        return json.dumps({"inputs": {"prompt": prompts}, "params": wanted.model_dump(include=given)}).encode()

    async def _pass_on(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        """Let MLflow answer; note if the client leaves meanwhile; say after which time to ask again."""
        left, unread = threading.Event(), [{"type": "http.request", "body": body, "more_body": False}]
        client_left.set(left.is_set)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        async def replay() -> Message:
            if unread:
                return unread.pop()
            await asyncio.shield(watcher)
            return {"type": "http.disconnect"}

        async def with_time(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (429, 503, 504):
                message["headers"] = [*message["headers"], _retry_after(self._served.line.retry_after)]
            await send(message)

        watcher = asyncio.ensure_future(watch())
        try:
            await self._app({**scope, "headers": [(b"content-type", b"application/json")]}, replay, with_time)
        finally:
            watcher.cancel()


async def _body(receive: Receive) -> bytes | None:
    """The request's body, None if it is larger than MAX_BYTES: the rest of it is read and dropped, so that the client comes to
    read the answer. Raises TimeoutError if it does not come to an end."""
    body, size, more = bytearray(), 0, True
    async with asyncio.timeout(SECONDS_FOR_BODY):
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            body += message.get("body", b"") if size <= MAX_BYTES else b""
            more = message.get("more_body", False)
    return bytes(body) if size <= MAX_BYTES else None


def _prompts(asked: Any) -> list[Any]:
    """What a request has in the places of prompts, in any of MLflow's formats. Raises Answer (400)."""
    given = [name for name in _FORMATS if isinstance(asked, dict) and name in asked]
    if len(given) != 1 or set(asked) - {given[0], "params"}:
        raise refused(f'a request is {{"inputs": {{"prompt": [...]}}, "params": {{...}}}}, got {shown(asked)}')
    data = asked[given[0]]
    if given[0] == "dataframe_split" and isinstance(data, dict) and isinstance(data.get("data"), list):
        columns = data.get("columns")
        place = columns.index("prompt") if isinstance(columns, list) and "prompt" in columns else 0
        return [row[place] if isinstance(row, list) and len(row) > place else row for row in data["data"]]
    if isinstance(data, dict):
        data = data.get("prompt")
    cells = data if isinstance(data, list) else [data]
    return [cell.get("prompt") if isinstance(cell, dict) and set(cell) == {"prompt"} else cell for cell in cells]


async def _answer(send: Send, status: int, said: dict[str, Any], retry_after: int | None = None) -> None:
    headers = [(b"content-type", b"application/json")]
    headers += [_retry_after(retry_after)] if retry_after else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def _retry_after(seconds: int) -> tuple[bytes, bytes]:
    return b"retry-after", str(seconds).encode()
