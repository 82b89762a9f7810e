"""The server: what the page asks for, answered by the same functions as the command line's."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import mlflow
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from mlflow.exceptions import MlflowException
from PIL import Image

from b4m_pipeline.common.memory import device_memory
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.registry import promotion
from b4m_pipeline.studio import keeping, recipes, sheets, shelf
from b4m_pipeline.studio.asked import (
    CaptionRequest,
    CardsRequest,
    DrawingRequest,
    ExportRequest,
    PairRequest,
    RunRequest,
    VersionRequest,
)
from b4m_pipeline.studio.canvas import Canvas, Drawing, Explain
from b4m_pipeline.studio.intake import MOST_BYTES, Intake, IntakeError, png
from b4m_pipeline.studio.merges import Load, Measurement
from b4m_pipeline.studio.places import MOST_PICTURES, Places
from b4m_pipeline.studio.runs import STAGES, Runs
from b4m_pipeline.studio.security import guard
from b4m_pipeline.training import footprint

logger = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True)
class Studio:
    """What the answers come from. env: Kedro's, for commands and runs."""

    places: Places
    parameters: dict[str, Any]
    env: str | None
    canvas: Canvas
    intake: Intake
    runs: Runs
    merges: Measurement
    explain: Explain

    @classmethod
    def of(cls, places: Places, parameters: dict[str, Any], env: str | None, load: Load, explain: Explain) -> "Studio":
        """parameters: typed, as `prerequisites.check_parameters` gives them; load: of the catalog; explain: how a user's error
        is said, None for a defect."""

        def keep_card(drawing: Drawing) -> None:
            if drawing.request.card and drawing.request.adapter:
                name, version = _name_and_version(drawing.request.adapter)
                shelf.keep_card(drawing.pictures[0].image, name, version, places.output)

        canvas, intake = Canvas(parameters, explain, keep_card), Intake(places, parameters)
        runs = Runs(places.project, places.output, env, intake, canvas.release)
        return cls(places, parameters, env, canvas, intake, runs, Measurement(canvas, load), explain)

    def settings(self) -> dict[str, Any]:
        """What the page needs to know of the project."""
        p, store = self.parameters, mlflow.get_tracking_uri()
        return {
            "project": self.places.project.name,
            "base": self.canvas.base,
            "device": self.canvas.device,
            "resolution": p["base_model"].resolution,
            "negative_prompts": load_family(p["base_model"]).negative_prompts,
            "steps": p["generate"].steps,
            "guidance_scale": p["generate"].guidance_scale,
            "seed": p["seed"],
            "break_steps": p["content_break"].steps,
            "make_steps": p["make"].steps,
            "content": p["content"].model_dump(include={"token", "noun"}),
            "style": p["style"].model_dump(include={"token", "noun"}),
            "stages": STAGES,
            "most_pictures": MOST_PICTURES,
            "mlflow": store if store.startswith("http") and "@" not in store else None,
        }

    def memory(self) -> dict[str, Any]:
        """What each stage needs, in GiB, and what does not fit; see `kedro memory`."""
        own, there = footprint.Settings.of(self.parameters, self.canvas.device), device_memory(self.canvas.device)
        rows = []
        for need in footprint.needs(own):
            fits = need.total <= there
            helps = [] if fits else footprint.remedy(own, need, there)
            rows.append({"stage": need.stage, "gib": need.total / footprint.GIB, "fits": fits, "remedies": helps})
        return {"device": self.canvas.device, "gib": there / footprint.GIB, "rows": rows}


def build(studio: Studio) -> FastAPI:
    """The application. Every answer that is no file is JSON; an error is {"error": a line}."""
    app = FastAPI(title="b4m_pipeline studio", docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app, studio.explain)
    app.middleware("http")(guard)  # the outermost: its headers are on errors, too
    _add_library(app, studio)
    _add_drawing(app, studio)
    _add_training(app, studio)
    _add_sheets(app, studio)

    @app.get("/api/settings")
    def settings() -> dict[str, Any]:
        return studio.settings()

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


def _add_errors(app: FastAPI, explain: Explain) -> None:
    def answer(request: Request, error: Exception) -> JSONResponse:
        told = explain(error)
        if told is None:
            logger.error("%s %s could not be answered", request.method, request.url.path, exc_info=error)
            return JSONResponse({"error": f"This is a defect ({type(error).__name__}); the terminal says more"}, 500)
        if isinstance(error, MlflowException) and error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
            told = f"MLflow does not answer: start its server again; the page goes on then. {told}"
        return JSONResponse({"error": told.strip().splitlines()[0][:600]}, 503 if isinstance(error, MlflowException) else 400)

    def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        said = first["msg"].removeprefix("Value error, ")
        return JSONResponse({"error": f"{where}: {said}" if where else said}, 422)

    async def caught(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await call_next(request)
        except Exception as error:  # whatever an answer meets, the page goes on
            return answer(request, error)

    app.middleware("http")(caught)
    app.add_exception_handler(RequestValidationError, refuse)  # type: ignore[arg-type]


def _add_library(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/cards")
    def cards(asked: Annotated[CardsRequest, Query()]) -> dict[str, Any]:
        found, after = shelf.cards(studio.canvas.base, asked)
        return {"cards": [asdict(card) for card in found], "after": after}

    @app.get("/api/cards/{name}/{version}.png")
    def card_picture(name: str, version: int) -> Response:
        found = shelf.picture(name, str(version), studio.places.output)
        return _picture(found) if found else Response(status_code=204)

    @app.get("/api/differences")
    def differences(first: str, second: str) -> list[tuple[str, str, str]]:
        for uri in (first, second):
            _name_and_version(uri)
        return shelf.differences(first, second)

    @app.post("/api/promotions")
    def promote(asked: VersionRequest) -> dict[str, str]:
        return {"message": str(promotion.promote(asked.name, asked.version))}

    @app.post("/api/roll-backs")
    def roll_back(asked: VersionRequest) -> dict[str, str]:
        return {"message": str(promotion.roll_back(asked.name))}


def _add_drawing(app: FastAPI, studio: Studio) -> None:
    canvas, output = studio.canvas, studio.places.output

    @app.post("/api/drawings")
    def draw(asked: DrawingRequest) -> dict[str, Any]:
        return canvas.submit(asked).about()

    @app.get("/api/drawings/{id}")
    def drawing(id: str) -> dict[str, Any]:
        return canvas.drawing(id).about()

    @app.post("/api/drawings/{id}/stop")
    def stop(id: str) -> dict[str, Any]:
        canvas.drawing(id).stop.set()
        return canvas.drawing(id).about()

    @app.get("/api/pictures/{id}.png")
    def picture(id: str) -> Response:
        return _picture(canvas.picture(id)[1].image)

    @app.get("/api/pictures/{id}/recipe")
    def recipe(id: str) -> dict[str, Any]:
        drawing, picture = canvas.picture(id)
        runs = recipes.kedro_runs(canvas, drawing.request, picture.cell)
        return {
            "commands": recipes.commands(runs, studio.env, studio.places.project, output),
            "python": recipes.python_code(canvas, drawing.request, picture.cell),
        }

    @app.post("/api/pictures/{id}/keep")
    def keep(id: str) -> dict[str, str]:
        return {"file": keeping.keep(canvas, *canvas.picture(id), output)}

    @app.post("/api/pictures/{id}/register")
    def register(id: str) -> dict[str, str]:
        return keeping.register(canvas, *canvas.picture(id), output)

    @app.post("/api/pictures/{id}/export")
    def export(id: str, asked: ExportRequest) -> dict[str, str]:
        file = keeping.export(canvas, *canvas.picture(id), asked, output)
        return {"file": file.name, "path": file.relative_to(studio.places.project).as_posix()}

    @app.get("/api/exports/{name}")
    def exported(name: str) -> Response:
        return FileResponse(keeping.exported_file(name, output), filename=name, media_type="application/octet-stream")

    @app.get("/api/kept")
    def kept() -> list[dict[str, Any]]:
        return keeping.kept(output)

    @app.get("/api/kept/{name}")
    def kept_picture(name: str) -> Response:
        return FileResponse(keeping.kept_file(name, output), media_type="image/png")

    @app.delete("/api/kept/{name}")
    def discard(name: str) -> dict[str, str]:
        keeping.discard(name, output)
        return {"file": name}


def _add_training(app: FastAPI, studio: Studio) -> None:
    intake, runs = studio.intake, studio.runs

    @app.get("/api/folders")
    def folders() -> list[dict[str, Any]]:
        return studio.places.folders()

    @app.put("/api/uploads/{name}/{file}")
    async def upload(name: str, file: str, request: Request) -> dict[str, str]:
        from starlette.concurrency import run_in_threadpool

        return await run_in_threadpool(intake.add, name, file, await _body(request))

    @app.post("/api/inspections")
    def inspect(asked: PairRequest) -> dict[str, Any]:
        found = intake.inspect(asked)
        return {"id": found.id, "rows": found.rows, "left_out": found.left_out, "warnings": found.warnings}

    @app.get("/api/inspections/{id}/{number}.png")
    def square(id: str, number: int) -> Response:
        return _picture(intake.square(id, number))

    @app.put("/api/captions")
    def caption(asked: CaptionRequest) -> dict[str, str]:
        intake.write_caption(asked)
        return {"file": asked.file}

    @app.get("/api/memory")
    def memory() -> dict[str, Any]:
        return studio.memory()

    @app.post("/api/runs")
    def start(asked: RunRequest) -> dict[str, Any]:
        return asdict(runs.start(asked))

    @app.get("/api/runs/current")
    def current() -> dict[str, Any] | None:
        return runs.watch()

    @app.post("/api/runs/current/stop")
    def stop() -> dict[str, str]:
        runs.stop()
        return {"state": "stopping"}

    @app.post("/api/runs/current/go-on")
    def go_on() -> dict[str, Any]:
        return asdict(runs.go_on())


def _add_sheets(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/merges")
    def measurement() -> dict[str, str]:
        return studio.merges.about()

    @app.post("/api/merges")
    def measure(asked: VersionRequest) -> dict[str, str]:
        studio.merges.start(f"models:/{asked.name}/{asked.version}")
        return studio.merges.about()

    @app.get("/api/sheets")
    def evaluations() -> list[dict[str, Any]]:
        return sheets.evaluations()

    @app.get("/api/sheets/{run}")
    def sheet(run: str) -> dict[str, Any]:
        return sheets.sheet(run)

    @app.get("/api/sheets/{run}/{path:path}")
    def picture(run: str, path: str) -> Response:
        headers = {"Cache-Control": "private, max-age=3600"}  # it will not change
        return Response(sheets.picture(run, path), media_type="image/png", headers=headers)


async def _body(request: Request) -> bytes:
    """Of an upload; refused before it fills the memory. Raises IntakeError."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise IntakeError(f"The file is larger than {MOST_BYTES / 1e6:.0f} MB, the most that is taken")
    return bytes(data)


def _picture(image: Image.Image) -> Response:
    return Response(png(image), media_type="image/png")


def _name_and_version(uri: str) -> tuple[str, str]:
    """Raises ShelfError for anything but "models:/NAME/VERSION"."""
    parts = uri.removeprefix("models:/").rsplit("/", 1)
    if not uri.startswith("models:/") or len(parts) != 2 or not parts[1].isdigit() or "/" in parts[0]:
        raise shelf.ShelfError(f"{uri!r} is no version of the registry")
    return parts[0], parts[1]
