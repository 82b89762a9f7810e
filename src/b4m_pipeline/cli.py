"""Kedro's commands in this project: `run` says a user's error in one line, `register` logs an adapter later, `export` writes
one for other programs, `promote`, `roll-back`, `adapters` and `serve` are for the registry's daily use, `studio` serves
a page."""

import contextlib
import copy
import importlib.util
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.context import KedroContext
from kedro.framework.session import KedroSession
from kedro_mlflow.framework.cli.cli import KedroClickGroup

from b4m_pipeline.context import read_params
from b4m_pipeline.one_line import OneLineErrors, explain


def in_project(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option --env, and hand it the project's context, whose tracking store is set up. One that has the
    option --params, too, gets a context with these."""

    @wraps(function)
    def command(env: str | None, params: dict[str, Any] | None = None, **given: Any) -> None:
        with KedroSession.create(env=env, runtime_params=params) as session:
            function(session.load_context(), **given)

    return click.option("--env", "-e", default=None, help="Kedro configuration environment name.")(command)


def _with_params(options: list[click.Parameter]) -> list[click.Parameter]:
    """Kedro's options; --params and --runner-params are read by `read_params`, and the runner is this project's."""
    own = [copy.copy(option) for option in options]
    for option in own:
        option.callback = read_params if option.name in ("params", "runner_params") else option.callback
        if option.name == "runner":
            option.default, option.show_default = "b4m_pipeline.runner.SideBySideRunner", True
    return own


run = OneLineErrors(name="run", callback=kedro_run.callback, params=_with_params(kedro_run.params), help=kedro_run.help)


@click.command(cls=OneLineErrors)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--alias", default=None, help="Alias of the new version.  [default: candidate, after a short training trial]")
@click.option("--prefix", default="b4m", show_default=True, help="First part of the registered name.")
@in_project
def register(context: KedroContext, folder: Path, alias: str | None, prefix: str) -> None:
    """Log the adapter in FOLDER to MLflow and register it."""
    from b4m_pipeline.common.locks import FolderLock
    from b4m_pipeline.registry import leftovers
    from b4m_pipeline.registry.adapters import register_adapter

    own = context.config_loader["catalog"].get("made_adapter", {}).get("save_args", {})  # as a run's own
    named = {"alias": alias} if alias is not None else {key: own[key] for key in ("alias", "trial") if key in own}
    folder = folder.absolute()
    lock = FolderLock(folder)
    with contextlib.chdir(context.project_path):  # the base model's path counts from there
        lock.acquire("kedro register", "Wait for it or end it")
        with leftovers.signed(lock.path):
            record = register_adapter(folder, **named, prefix=prefix, inference=own.get("inference"))
        lock.release()
    click.echo(record["uri"])


@click.command(cls=OneLineErrors)
@click.argument("adapter")
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--dtype", type=click.Choice(["fp16", "bf16", "fp32"]), default="fp16", show_default=True)
@click.option("--author", default=None, help="Who made it, for the file's header.")
@click.option("--license", default=None, help="Its licence, for the file's header.")
@click.option(
    "--thumbnail",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Picture for the file's header.  [default: the first of the evaluation, where there was one]",
)
@in_project
def export(
    context: KedroContext,
    adapter: str,
    output: Path,
    dtype: str,
    author: str | None,
    license: str | None,
    thumbnail: Path | None,
) -> None:
    """Write ADAPTER (a folder, or models:/NAME@ALIAS) to OUTPUT (.safetensors) for ComfyUI, A1111 and kohya's scripts."""
    from b4m_pipeline.method.adapter import URI_KEY
    from b4m_pipeline.registry.adapters import fetch_adapter
    from b4m_pipeline.registry.exports import export_adapter
    from b4m_pipeline.registry.modelspec import About, read_thumbnail
    from b4m_pipeline.registry.tracking import evaluated_picture

    fetched = fetch_adapter(adapter)
    uri = fetched.metadata.get(URI_KEY)
    shown = read_thumbnail(thumbnail) if thumbnail else evaluated_picture(uri) if uri else None
    click.echo(export_adapter(fetched, output, dtype, About(author, license, shown)))


@click.command(cls=OneLineErrors)
@click.argument("name")
@click.option("--version", default=None, help="The version to promote.  [default: the candidate's]")
@click.option("--alias", default="champion", show_default=True, help="Alias that is moved to it.")
@in_project
def promote(context: KedroContext, name: str, version: str | None, alias: str) -> None:
    """Make a version of the registered adapter NAME the champion."""
    from b4m_pipeline.registry import promotion

    click.echo(promotion.promote(name, version, alias))


@click.command(cls=OneLineErrors)
@click.argument("name")
@click.option("--alias", default="champion", show_default=True, help="Alias that goes back.")
@in_project
def roll_back(context: KedroContext, name: str, alias: str) -> None:
    """Make the version before the champion of NAME again; several times, the versions before that."""
    from b4m_pipeline.registry import promotion

    click.echo(promotion.roll_back(name, alias))


@click.command(cls=OneLineErrors)
@click.option("--kind", type=click.Choice(["content", "style", "joined", "make", "merged"]), default=None)
@click.option("--concept", default=None, help="Name of a content or a style.")
@click.option("--frame", default=None, help="Beginning of the frame's fingerprint: halves of one frame go together.")
@click.option("--base", default=None, help="A part of the base model's name or digest.")
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Show at most so many; 0: all.")
@in_project
def adapters(
    context: KedroContext, kind: str | None, concept: str | None, frame: str | None, base: str | None, limit: int
) -> None:
    """List the registered adapters by name, newest version first."""
    from rich.console import Console

    from b4m_pipeline.registry import listing

    found = listing.find_adapters(kind, concept, frame, base, limit + 1 if limit else None)
    if not found:
        click.echo("The registry has no adapter like that.")
        return
    Console(width=None if sys.stdout and sys.stdout.isatty() else 240).print(listing.table(found[:limit] if limit else found))
    if limit and len(found) > limit:
        click.echo(f"There are more than these {limit}: narrow the search down, or raise --limit (0: all).", err=True)


@click.command(cls=OneLineErrors, params=_with_params([option for option in kedro_run.params if option.name == "params"]))
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option(
    "--gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory to compare with.  [default: that of the parameter `memory`, or the device's]",
)
@in_project
def memory(context: KedroContext, device: str, gib: float | None) -> None:
    """Say what memory each stage will need, without loading the model, and which settings need less."""
    from kedro.framework.project import pipelines

    from b4m_pipeline import prerequisites
    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.common.memory import device_memory
    from b4m_pipeline.training import footprint

    raw = context.config_loader["parameters"]
    parameters, gib = prerequisites.check_parameters(raw, dict(pipelines)), gib or raw["memory"]
    # With --gib the question is about some GPU, which need not be here.
    chosen = "cuda" if gib and device in ("auto", "cuda") else pick_device(device)
    there = round(gib * footprint.GIB) if gib else device_memory(chosen)
    click.echo(footprint.HEADER)
    with contextlib.chdir(context.project_path):  # the base model's path counts from there
        for line in footprint.report(footprint.Settings.of(parameters, chosen), there):
            click.echo(line)


@click.command(cls=OneLineErrors)
@click.argument("adapter")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@click.option("--timeout", type=click.IntRange(min=1), default=60, show_default=True, help="Seconds that a request may take.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, a base model in each.")
@click.option(
    "--others/--no-others", default=False, show_default=True, help="Requests may name other adapters of the registry."
)
@in_project
def serve(context: KedroContext, adapter: str, host: str, port: int, timeout: int, workers: int, others: bool) -> None:
    """Serve the registered ADAPTER (models:/NAME@ALIAS) over HTTP, as `mlflow models serve` does, with bounds."""
    from b4m_pipeline.registry import server

    server.run(adapter, host, port, timeout, workers, others)


@click.command(cls=OneLineErrors)
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0: any that is free.")
@click.option(
    "--allow",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="A folder of pictures outside data/01_raw that the page may use; can be given several times.",
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
@in_project
def studio(context: KedroContext, port: int, allow: tuple[Path, ...], browser: bool) -> None:
    """Serve a page for this machine's browser: library, composing, training, evaluations."""
    missing = [name for name in ("fastapi", "psutil", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f'kedro studio needs {" and ".join(missing)}, which is not installed: pip install -c constraints.txt -e ".[studio]"'
        )

    from b4m_pipeline import prerequisites
    from b4m_pipeline.studio import serve as page
    from b4m_pipeline.studio.app import Studio
    from b4m_pipeline.studio.places import Places

    listener = page.bind(port)
    parameters = context.params
    prerequisites.check_base_model(parameters["base_model"], None)
    places = Places(Path(context.project_path), [folder.resolve() for folder in allow])
    page.serve(Studio.of(places, parameters, context.env, context.catalog.load, explain), listener, click.echo, browser)


@click.command(cls=OneLineErrors)
@click.option("--host", default=None, help="Address to listen at.  [default: that of mlflow.yml]")
@click.option("--port", default=None, help="[default: that of mlflow.yml]")
@in_project
def ui(context: KedroContext, host: str | None, port: str | None) -> None:
    """Serve MLflow's page, and say where on it this project's runs and models are."""
    from b4m_pipeline.registry.addresses import serve_page

    settings, experiment = context.mlflow.ui, context.mlflow.tracking.experiment._experiment.experiment_id
    serve_page(host or settings.host, port or settings.port, experiment, click.echo)


class MlflowCommands(KedroClickGroup):
    """kedro-mlflow's commands, with `ui` in place of its own."""

    def reset_commands(self) -> None:
        super().reset_commands()
        self.commands["ui"] = ui


mlflow_commands = MlflowCommands(name="mlflow", help="MLflow's page, and further commands of kedro-mlflow.")
commands = (run, register, export, promote, roll_back, adapters, memory, serve, studio, mlflow_commands)
cli = click.Group(name="b4m_pipeline", commands={command.name: command for command in commands})
