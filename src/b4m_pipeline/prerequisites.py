"""What can be known to be wrong before a run starts."""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kedro.validation.parameter_validator import ParameterValidator
from pydantic import ValidationError

from b4m_pipeline.common.config import RunParams

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline

_PREFIX = "params:"


class UnknownParameterError(ValueError):
    """A parameter that no pipeline reads."""


class WrongParameterError(ValueError):
    """A parameter whose value cannot work here."""


def check_parameters(parameters: dict[str, Any], pipelines: dict[str, "Pipeline"]) -> dict[str, Any]:
    """Validate all parameters, also those of pipelines that do not run now, so that a typo never passes unseen.

    parameters: as configured, with those of --params. Returns them with typed models in place. Raises
    UnknownParameterError for a top-level name that no pipeline reads, ParameterValidationError for anything inside.
    """
    inputs = {name for pipeline in pipelines.values() for name in pipeline.inputs() if name.startswith(_PREFIX)}
    known = {name.removeprefix(_PREFIX).split(".")[0] for name in inputs} | RunParams.model_fields.keys()
    for name in parameters:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
            raise UnknownParameterError(f"Unknown parameter {name!r}: {hint}")
    try:
        RunParams(**{name: parameters[name] for name in RunParams.model_fields if name in parameters})
    except ValidationError as error:
        first = error.errors()[0]
        raise WrongParameterError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}") from error
    return ParameterValidator(pipelines).validate_raw_params(parameters)


def check_data_folder(parameters: dict[str, Any], data: str) -> None:
    """Raise WrongParameterError if the parameters name another data folder than `data`, the catalog's."""
    if (own := parameters.get("data", data)) != data:
        raise WrongParameterError(
            f"data is {own!r} in parameters.yml, and the catalog's folder is {data!r}: set it in the environment's globals.yml "
            "or, for one run, by --params=data=FOLDER"
        )


def check_devices(parameters: dict[str, Any]) -> None:
    """Raise DeviceError if a stage is to run on a device that is not there, or in a format that its device does not know."""
    from b4m_pipeline.common.devices import check_precision, pick_device

    for name, stage in parameters.items():
        device = pick_device(getattr(stage, "device", "auto"), f"{name}.device")
        check_precision(getattr(stage, "precision", "auto"), device, f"{name}.precision")


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
