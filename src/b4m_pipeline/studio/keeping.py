"""What becomes of a picture: kept as a file, its adapter registered, or written for other programs."""

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from b4m_pipeline.common.words import file_words
from b4m_pipeline.diffusion.sampling import INFO_KEY, png_info
from b4m_pipeline.library.compose import compose
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import with_strengths
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.adapters import register_adapter
from b4m_pipeline.registry.exports import export_adapter
from b4m_pipeline.registry.modelspec import About
from b4m_pipeline.studio.asked import PAIRED, ExportRequest
from b4m_pipeline.studio.canvas import Canvas, Drawing, Picture
from b4m_pipeline.studio.recipes import kedro_runs, write_config

_KEPT = re.compile(r"[\w-]+\.png")
_HALVES = 1 / 3
"""Exponent from the strength of a half to its weight, as in method/combine.py."""


class KeepingError(ValueError):
    """A picture or a file that is not there, or an adapter that is registered already."""


def keep(canvas: Canvas, drawing: Drawing, picture: Picture, folder: Path) -> str:
    """Save the picture, with what it was made by inside it and, beside it, as files for `kedro run --config`. Returns its
    file's name."""
    own = folder / "kept"
    own.mkdir(parents=True, exist_ok=True)
    stem = f"{file_words(drawing.request.prompt)[:50]}-{picture.cell.way}-{picture.cell.seed}-{picture.id[:6]}"
    for place, run in enumerate(kedro_runs(canvas, drawing.request, picture.cell), 1):
        write_config(run, own / f"{stem}.{place}.yml")
    picture.image.save(own / f"{stem}.png", pnginfo=png_info(picture.image))
    return f"{stem}.png"


def kept(folder: Path) -> list[dict[str, Any]]:
    """The kept pictures, newest first: file, prompt and seed."""
    files = sorted((folder / "kept").glob("*.png"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [{"file": file.name} | _made_by(file) for file in files if _KEPT.fullmatch(file.name)]


def _made_by(file: Path) -> dict[str, Any]:
    try:
        with Image.open(file) as image:
            about = json.loads(image.info.get(INFO_KEY, "{}"))
    except (OSError, ValueError):
        about = {}
    return {"prompt": str(about.get("prompt", "")), "seed": about.get("seed")}


def kept_file(name: str, folder: Path) -> Path:
    """Raises KeepingError if no picture of this name is kept."""
    file = folder / "kept" / name
    if not _KEPT.fullmatch(name) or not file.is_file():
        raise KeepingError(f"No kept picture is called {name}")
    return file


def discard(name: str, folder: Path) -> None:
    """Remove a kept picture and the files beside it. Raises KeepingError."""
    file = kept_file(name, folder)
    for beside in file.parent.glob(f"{file.stem}.[0-9].yml"):
        beside.unlink(missing_ok=True)
    file.unlink()


def register(canvas: Canvas, drawing: Drawing, picture: Picture, folder: Path) -> dict[str, str]:
    """Register what the picture was drawn with, at its strengths, as `kedro run --pipelines=compose` and `kedro register` do.
    Returns the record of `register_adapter`. Raises KeepingError for what the registry has as it is."""
    request, cell = drawing.request, picture.cell
    if cell.way not in PAIRED:
        raise KeepingError(f"{request.adapter} is in the registry already: promote it there")
    params = canvas.composition(request, cell)
    if cell.way == "halves":
        weights = {"content_weight": cell.content**_HALVES, "style_weight": cell.style**_HALVES}
        params = params.model_copy(update={"merge": params.merge.model_copy(update=weights)})
    p = canvas.parameters
    adapter = compose(params, canvas.base_model, p["frame"].content_side, p["make"], p["seed"])[2][cell.way]
    adapter.metadata["example_prompt"] = request.prompt
    own = folder / "registered" / f"{adapter.metadata['name']}-{cell.way}-{picture.id[:6]}"
    own.mkdir(parents=True, exist_ok=True)
    save_adapter(adapter, own)
    inference = {"num_inference_steps": request.steps, "guidance_scale": request.guidance_scale}
    return register_adapter(own, inference=inference)


def strengthened(canvas: Canvas, drawing: Drawing, picture: Picture) -> Adapter:
    """What the picture was drawn with, its strengths within the weights."""
    settings = canvas.settings(drawing.request, picture.cell)
    adapter = canvas.adapter(drawing.request, picture.cell)
    return with_strengths(adapter, settings.content_scale, settings.style_scale)


def export(canvas: Canvas, drawing: Drawing, picture: Picture, wanted: ExportRequest, folder: Path) -> Path:
    """Write what the picture was drawn with for ComfyUI, A1111 and kohya's scripts, the picture as its thumbnail. Raises
    KeepingError if there is such a file, ExportError."""
    file = folder / "exports" / f"{wanted.name}.safetensors"
    if file.exists():
        raise KeepingError(f"{file.name} is there already: give the file another name")
    about = About(wanted.author, wanted.license, picture.image)
    return export_adapter(strengthened(canvas, drawing, picture), file, wanted.dtype, about)


def exported_file(name: str, folder: Path) -> Path:
    """Raises KeepingError if there is none."""
    file = folder / "exports" / name
    if not re.fullmatch(r"[\w-]+\.safetensors", name) or not file.is_file():
        raise KeepingError(f"No exported file is called {name}")
    return file
