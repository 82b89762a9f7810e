"""What can be known to be wrong before a run starts."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.validation.type_extractor import TypeExtractor
from pydantic import TypeAdapter, ValidationError

from b4m_pipeline.common.config import RunParams, faults, named, unknown

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

_PREFIX = "params:"
_TOLD = 5  # faults of a message
_WRITTEN = (
    *("data", "checkpoints", "encoding_cache", "library.folder", "benchmark.folder", "counterparts.drawn.folder"),
    *(
        "make.rehearsal.folder",
        "ingestion.drawn_looks.folder",
        "pretrain.output",
        "pretrain.clip_output",
        "pretrain.checkpoints",
    ),
)
"""Parameters that are folders which a run writes to."""


class WrongParameterError(ValueError):
    """A parameter that there is not, or whose value cannot work here."""


def check_parameters(parameters: dict[str, Any], pipelines: dict[str, "Pipeline"]) -> dict[str, Any]:
    """Validate all parameters, also those of pipelines that do not run now, so that a typo never passes unseen.

    parameters: as configured, with those of --params. Returns them with typed models in place. Raises WrongParameterError,
    naming each by the key that a user types.
    """
    inputs = {name for pipeline in pipelines.values() for name in pipeline.inputs() if name.startswith(_PREFIX)}
    known = {name.removeprefix(_PREFIX).split(".")[0] for name in inputs} | RunParams.model_fields.keys()
    found = [f"{named(name)}: {unknown(str(name), known)}" for name in parameters if name not in known]
    checked = dict(parameters)
    plain = {name: parameters[name] for name in RunParams.model_fields if name in parameters}
    schemas = TypeExtractor(pipelines).extract_types_from_pipelines()
    try:
        RunParams(**plain)
    except ValidationError as error:
        found += faults(error, RunParams)
    for name in sorted(schemas.keys() & parameters.keys()):
        schema = schemas[name]
        try:
            checked[name] = TypeAdapter(schema).validate_python(parameters[name])
        except ValidationError as error:
            found += faults(error, schema, f"{name}.")
    if found:
        more = f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
        raise WrongParameterError("; ".join(found[:_TOLD]) + more)
    return checked


def check_folders(parameters: dict[str, Any], inputs: Collection[str]) -> None:
    """Raise WrongParameterError, naming the parameter, if one of the folders that a run writes to is a file, lies in one, or
    may not be written to. inputs: of the pipeline that runs."""
    for name in _WRITTEN:
        group, _, field = name.partition(".")
        value: Any = parameters.get(group) if f"{_PREFIX}{group}" in inputs else None
        for part in field.split(".") if field else ():
            value = getattr(value, part, None)
        if value:
            folder = Path(value).expanduser().absolute()
            there = next(place for place in (folder, *folder.parents) if place.exists())
            if not there.is_dir():
                raise WrongParameterError(f"{name}: {value} cannot be a folder, {there} is a file: give another")
            if not os.access(there, os.W_OK | os.X_OK):
                raise WrongParameterError(f"{name}: {there} may not be written to: give another folder, or write permission")


def check_data_folder(parameters: dict[str, Any], data: str) -> None:
    """Raise WrongParameterError if the parameters name another data folder than `data`, the catalog's."""
    if (own := parameters.get("data", data)) != data:
        raise WrongParameterError(
            f"data is {own!r} in parameters.yml, and the catalog's folder is {data!r}: set it in the environment's globals.yml "
            "or, for one run, by --params=data=FOLDER"
        )


def check_devices(parameters: dict[str, Any]) -> None:
    """Raise DeviceError if a stage is to run on devices that are not there, or in a format that its device does not know."""
    from b4m_pipeline.common.devices import check_precision, pick_device
    from b4m_pipeline.training.parallel import check_processes

    for name, stage in parameters.items():
        device = pick_device(getattr(stage, "device", "auto"), f"{name}.device")
        check_precision(getattr(stage, "precision", "auto"), device, f"{name}.precision")
        if getattr(stage, "processes", 1) > 1:
            check_processes(name, stage)


def check_memory(
    parameters: dict[str, Any], stages: list[str], presets: Callable[[], dict[int, dict[str, Any]]] = dict
) -> None:
    """Raise MemoryShortageError, naming a setting, if one of these stages certainly does not fit into the GPU's memory.
    presets: gives the typed parameters for each GB that the environment has settings for."""
    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.training.footprint import check_weights

    for name in stages:
        check_weights(parameters, [name], pick_device(parameters[name].device, f"{name}.device"), presets)


def check_optimizers(parameters: dict[str, Any], stages: list[str]) -> None:
    """Raise OptimizerError, naming the package, if one of these stages wants an optimizer that is not installed."""
    from b4m_pipeline.training.optimizers import check_optimizer

    for name in stages:
        check_optimizer(parameters[name].optimizer.removeprefix("riemannian_"))


def check_objectives(parameters: dict[str, Any], stages: list[str]) -> None:
    """Raise ObjectiveError, naming the parameter, if one of these stages asks for what the base model's objective has not."""
    from b4m_pipeline.training.setup import check_objective

    for name in stages:
        check_objective(parameters["base_model"], name, parameters[name])


def check_starts(parameters: dict[str, Any], stages: list[str]) -> None:
    """Raise StartError, naming the parameter, if one of these breaks is to go on from what it cannot go on from."""
    for name in stages:
        if parameters[name].start_from is not None:
            from b4m_pipeline.library.reuse import start_of
            from b4m_pipeline.training.setup import make_frame
            from b4m_pipeline.training.starts import check_start

            frame = make_frame(parameters["base_model"], parameters["frame"])
            check_start(start_of(parameters[name], name), name.removesuffix("_break"), parameters["frame"], frame)


def check_hub(parameter: str, path: str | None) -> None:
    """Raise HubError, naming the parameter, if a model of transformers is wanted, a Hub id, that cannot be had."""
    from b4m_pipeline.common.hub import CONFIG, WEIGHTS, require_model

    for files in (CONFIG, WEIGHTS) if path else ():
        require_model(parameter, path, files)


def check_buckets(base_model: Any, ingestion: Any) -> None:
    """Raise WrongParameterError if pictures would get sides that the base model cannot have."""
    from b4m_pipeline.diffusion.families import load_family

    multiple = load_family(base_model).side_multiple()
    if ingestion.buckets and ingestion.buckets.step % multiple:
        raise WrongParameterError(
            f"ingestion.buckets.step is {ingestion.buckets.step}, and this base model's pictures have sides of multiples of "
            f"{multiple} pixels: use such a step"
        )


def check_clip(parameter: str, path: str | None) -> None:
    """Raise CaptioningError or HubError, naming the parameter, if a CLIP model is wanted that is not there."""
    if path:
        from transformers import CLIPConfig

        from b4m_pipeline.inputs.captions import CaptioningError

        check_hub(parameter, path)
        try:
            CLIPConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise CaptioningError(f"{parameter}: there is no CLIP model {path!r} ({first}). Or set it to null.") from error


def check_captioner(path: str | None) -> None:
    """Raise HubError or CaptioningError if a vision-language model is wanted that is not there or not supported."""
    if path:
        from b4m_pipeline.inputs.vision_language import read_config

        read_config(path)


def check_preservation(parameters: dict[str, Any], stages: list[str]) -> bool:
    """Whether one of these breaks has a preservation weight. Raises WrongParameterError if it has, and no words are named."""
    weighty = [name for name in stages if parameters[name].preservation_weight]
    if weighty and not parameters["preservation"].contents:
        raise WrongParameterError(
            f"{weighty[0]}.preservation_weight needs words that the base model knows: name some in preservation.contents and "
            "preservation.styles, or set the weight to 0"
        )
    return bool(weighty)


def check_halves(methods: list[str]) -> None:
    """Raise WrongParameterError if compose joins no halves, where the same run goes on with them."""
    if "halves" not in methods:
        raise WrongParameterError(
            f"compose.methods is {methods}, and this run's other pipelines go on with joined halves: add halves, or run "
            "compose alone"
        )


def check_base_model(base_model: Any, frame: Any | None, preserving: bool = False) -> None:
    """Look for the base model and, given a frame, for its targets in it; preserving: also for ones that read the prompt. Raises
    BaseModelError, HubError, TargetError."""
    if frame is None:
        from b4m_pipeline.diffusion.families import load_family

        load_family(base_model).check_parts()
    else:
        from b4m_pipeline.training.setup import check_targets

        check_targets(base_model, frame, preserving)
