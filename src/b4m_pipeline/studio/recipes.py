"""The command, and the Python, that give a picture of the page again."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import yaml

from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.studio.asked import PAIRED, DrawingRequest
from b4m_pipeline.studio.canvas import Canvas, Cell

_PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9 @_-]*[A-Za-z0-9]")
"""Prompts that --params takes as they are: no comma, no quote, nothing that YAML or a shell reads otherwise."""
_WORDS_OF_YAML = {"true", "false", "null", "yes", "no", "on", "off"}


def kedro_runs(canvas: Canvas, request: DrawingRequest, cell: Cell) -> list[dict[str, Any]]:
    """Runs, one after another, each {pipelines, params}: the last one's first picture is the cell's."""
    settings, runs = canvas.settings(request, cell), []
    generate = settings.model_dump(include={"prompts", "images_per_prompt", "steps", "guidance_scale", "batch_size"})
    if settings.negative_prompt:
        generate["negative_prompt"] = settings.negative_prompt
    generate["adapter"] = request.adapter
    if cell.way in PAIRED:
        own = canvas.composition(request, cell)
        compose: dict[str, Any] = {"content": own.content, "style": own.style, "methods": cell.way}
        if cell.way != "halves":
            compose["merge"] = {"content_weight": cell.content, "style_weight": cell.style}
        runs.append({"pipelines": "compose", "params": {"compose": compose}})
        generate["adapter"] = "data/06_models/adapters/reconstructed" if cell.way == "halves" else _merged(request, cell)
    for name in ("content_scale", "style_scale"):
        if (value := getattr(settings, name)) != 1.0:
            generate[name] = value
    runs.append({"pipelines": "generate", "params": {"seed": cell.seed, "generate": generate}})
    return runs


def _merged(request: DrawingRequest, cell: Cell) -> str:
    """Where the pipeline compose writes a merge."""
    names = [_name_of(str(uri)) for uri in (request.content, request.style)]
    return f"data/06_models/adapters/merged/{'-'.join(names)}/{cell.way}"


def _name_of(uri: str) -> str:
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    return mlflow.MlflowClient().get_model_version(name, version).tags["name"]


def commands(runs: list[dict[str, Any]], env: str | None, project: Path, folder: Path) -> list[str]:
    """The runs as commands. A prompt that no shell takes as it is goes into a file in `folder`, which the command names."""
    return [_command(run, f" --env={env}" if env else "", project, folder) for run in runs]


def _command(run: dict[str, Any], env: str, project: Path, folder: Path) -> str:
    items = _items(run["params"])
    if items is not None:
        return f'kedro run --pipelines={run["pipelines"]}{env} --params="{",".join(items)}"'
    file = folder / "commands" / f"{digest_of(run)}.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_config(run, file)
    return f"kedro run{env} --config={file.relative_to(project).as_posix()}"


def write_config(run: dict[str, Any], file: Path) -> None:
    """A run's arguments as a file for `kedro run --config`."""
    file.write_text(yaml.safe_dump({"run": run}, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _items(params: dict[str, Any], prefix: str = "") -> list[str] | None:
    """key=value for --params, None if a value cannot stand there."""
    found: list[str] = []
    for key, value in params.items():
        if isinstance(value, dict):
            inner = _items(value, f"{prefix}{key}.")
            if inner is None:
                return None
            found += inner
        elif isinstance(value, list):
            if len(value) != 1 or not _is_plain(value[0]):
                return None
            found.append(f"{prefix}{key}=[{value[0]}]")
        elif isinstance(value, str) and not (_is_plain(value) or re.fullmatch(r"[\w:/.-]+", value)):
            return None
        else:
            found.append(f"{prefix}{key}={value}")
    return found


def _is_plain(text: str) -> bool:
    return bool(_PLAIN_TEXT.fullmatch(text)) and text.lower() not in _WORDS_OF_YAML


def python_code(canvas: Canvas, request: DrawingRequest, cell: Cell) -> str:
    """A script that draws the cell's picture and saves it."""
    settings = canvas.settings(request, cell)
    store = re.sub(r"//[^/@\s]*@", "//***@", mlflow.get_tracking_uri())  # no passwords
    base = _call("BaseModelParams", canvas.base_model.model_dump(exclude_defaults=True))
    shown = settings.model_dump(exclude_defaults=True) | {"prompts": settings.prompts}
    imports = [
        "import mlflow",
        "",
        "from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams",
        "from b4m_pipeline.diffusion.sampling import generate, png_info",
    ]
    if cell.way == "halves":
        imports.append("from b4m_pipeline.method.combine import join_halves")
        imports.append("from b4m_pipeline.registry.adapters import fetch_adapter")
        halves = ", ".join(f"fetch_adapter({json.dumps(uri)})" for uri in (request.content, request.style))
        made = [f"adapter = join_halves({halves}, {json.dumps(_side(canvas, request))})"]
    elif cell.way in PAIRED:
        imports += ["from b4m_pipeline.library.compose import compose", "from b4m_pipeline.library.params import ComposeParams"]
        own = canvas.composition(request, cell)
        given = own.model_dump(exclude={"zip", "prompts"}, exclude_defaults=True)
        seed = canvas.parameters["seed"]
        side = canvas.parameters["frame"].content_side
        made = [
            f"params = {_call('ComposeParams', given)}",
            f'_, _, composed = compose(params, base, "{side}", None, {seed})  # None: what zip is trained with',
            f'adapter = composed["{cell.way}"]',
        ]
    else:
        imports.append("from b4m_pipeline.registry.adapters import fetch_adapter")
        made = [f"adapter = fetch_adapter({json.dumps(request.adapter)})"]
    return "\n".join(
        [*imports, "", f"mlflow.set_tracking_uri({json.dumps(store)})", f"base = {base}", *made]
        + [f"settings = {_call('GenerateParams', shown)}"]
        + [f"for name, picture in generate(adapter, base, settings, {cell.seed}).items():"]
        + ['    picture.save(f"{name}.png", pnginfo=png_info(picture))', ""]
    )


def _side(canvas: Canvas, request: DrawingRequest) -> str:
    """Whose side is content's, as `compose` decides it."""
    name, version = str(request.content).removeprefix("models:/").rsplit("/", 1)
    tags = mlflow.MlflowClient().get_model_version(name, version).tags
    return tags.get("half", canvas.parameters["frame"].content_side)


def _call(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
