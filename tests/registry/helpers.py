"""A served adapter for tests, and requests to it without a network."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INFERENCE = {"num_inference_steps": 2, "guidance_scale": 2.0}


def log_adapter(adapter, base: Path, root: Path) -> Path:
    """Folder of the model as MLflow logs it."""
    from b4m_pipeline.method.files import save_adapter
    from b4m_pipeline.registry import serving

    serving.save_model(
        str(root / "model"),
        adapter_path=str(save_adapter(adapter, root / "made")),
        base_model=str(base),
        signature=serving.predict_signature(adapter.metadata, INFERENCE),
        pip_requirements=[],
    )
    return root / "model"


@contextmanager
def guarded_app(base: Path, root: Path) -> Iterator[Any]:
    """What uvicorn serves, with a framed LoRA of the base model, while the context lasts."""
    import pytest
    from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT

    from b4m_pipeline.registry import server
    from tests.conftest import framed_lora_of

    folder = log_adapter(framed_lora_of(base), base, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(server.MODEL, str(folder))
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
        patch.setenv(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.name, "60")
        yield server.create_app()


@dataclass
class Said:
    """What an application answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def post(
    app, body: bytes | Sequence[bytes], kind: str = "application/json", path: str = "/invocations", method: str = "POST", **told
) -> Said:
    """One request, its body in one or several pieces. told: further headers, _ for -."""
    return asyncio.run(send(app, body, kind, path, method, **told))


async def send(
    app, body, kind="application/json", path="/invocations", method="POST", leave: asyncio.Event | None = None, **told
) -> Said:
    """See `post`. leave: the client leaves when this is set; otherwise it stays to the end."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    headers = {"content-type": kind} | {name.replace("_", "-"): value for name, value in told.items()}
    said, leave = Said(), leave or asyncio.Event()

    async def receive() -> dict:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def take(message: dict) -> None:
        if message["type"] == "http.response.start":
            said.status = message["status"]
            said.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            said.body += message.get("body", b"")

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method, "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"",
        "server": ("127.0.0.1", 5001), "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive, take)
    return said
