"""Every environment's parameters are complete and valid, without a model being loaded, and agree with the schemas."""

import copy
import json
from collections.abc import Iterator
from functools import cache

import pytest
from pydantic import BaseModel
from tools.reference import entry_model, nested_model, schemas

from b4m_pipeline.common.config import RunParams
from b4m_pipeline.common.devices import DeviceError
from b4m_pipeline.diffusion.families import FAMILIES
from b4m_pipeline.pipeline_registry import register_pipelines
from b4m_pipeline.prerequisites import WrongParameterError, check_devices, check_parameters
from b4m_pipeline.pretrain.text import alias_of
from b4m_pipeline.settings import CONFIG_LOADER_ARGS, ConfigLoader
from b4m_pipeline.training.params import SampleParams
from tests.test_startup import ROOT

FLOWS = ("sd35", "flux", "flux2", "zimage", "qwen")
"""Environments of base models of rectified flow."""


def config(environment: str, **runtime_params) -> ConfigLoader:
    return ConfigLoader(str(ROOT / "conf"), env=environment, runtime_params=runtime_params, **CONFIG_LOADER_ARGS)


@cache
def _loaded(environment: str) -> dict:
    return config(environment)["parameters"]


def load(environment: str) -> dict:
    """The parameters, which the caller may change."""
    return copy.deepcopy(_loaded(environment))


def disagreements(model: type[BaseModel], values: dict, prefix: str, defaults: bool = True) -> Iterator[str]:
    """Fields whose default is not the value in conf, and fields without a default that conf does not state. defaults: False
    for the entries of a list, which may each have values of their own."""
    for name, field in model.model_fields.items():
        key, value = f"{prefix}{name}", values.get(name, ...)
        nested, entry = nested_model(field.annotation), entry_model(field.annotation)
        if value is ... and field.is_required():
            yield f"{key} has neither a value in conf/base nor a default"
        elif nested:
            yield from disagreements(nested, value if isinstance(value, dict) else {}, f"{key}.", defaults)
        elif entry and isinstance(value, list):
            for each in value:
                yield from disagreements(entry, each, f"{key}[].", False)
        if not nested and value is not ... and defaults and not field.is_required():
            default = json.loads(json.dumps(field.get_default()))  # tuples as lists
            if default != value:
                yield f"{key} is {value!r} in conf/base, and by default {default!r}"


def test_every_default_is_the_value_in_conf_or_stands_in_the_schema_alone() -> None:
    values = load("base")
    assert list(disagreements(RunParams, values, "")) == []
    assert set(values) == set(schemas()) | set(RunParams.model_fields)
    for name, model in schemas().items():
        assert list(disagreements(model, values[name], f"{name}.")) == []


def test_a_disagreement_is_found() -> None:
    class Group(BaseModel):
        samples: SampleParams = SampleParams()
        several: list[SampleParams] = []
        missing: int

    found = list(disagreements(Group, {"samples": {"guidance_scale": 3.0}, "several": []}, "x."))
    assert [line.split(" ")[0] for line in found] == ["x.samples.guidance_scale", "x.missing"]


@pytest.mark.parametrize(
    ("environment", "steps", "guidance"),
    [("base", 20, 2.0), ("test", 2, 2.0), ("sdxl", 25, 5.0), ("sd15", 25, 7.5), ("sd35", 40, 4.5), ("flux", 28, 3.5),
     ("flux2", 50, 4.0), ("zimage", 50, 4.0), ("qwen", 50, 4.0)],
)  # fmt: skip
def test_adapters_are_registered_with_the_settings_that_they_are_evaluated_with(environment, steps, guidance) -> None:
    loader = config(environment)
    catalog, parameters = loader["catalog"], loader["parameters"]
    for adapter in ("content_adapter", "style_adapter", "made_adapter"):
        registered = catalog[adapter]["save_args"]["inference"]
        assert registered == {"num_inference_steps": steps, "guidance_scale": guidance}
    stages = (parameters[stage]["samples"] for stage in ("content_break", "style_break", "make"))
    for drawn in (parameters["evaluation"], parameters["generate"], parameters["counterparts"]["drawn"], *stages):
        assert (drawn["steps"], drawn["guidance_scale"]) == (steps, guidance)


def test_one_of_them_can_be_set_alone() -> None:
    parameters = config("sdxl", evaluation={"guidance_scale": 3})["parameters"]  # --params=evaluation.guidance_scale=3
    assert parameters["evaluation"]["guidance_scale"] == 3 and parameters["evaluation"]["steps"] == 25
    assert parameters["generate"]["guidance_scale"] == 5.0


def paths(values) -> Iterator[str]:
    """Texts in nested dictionaries and lists that name a folder or file of runs."""
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        if isinstance(value, str) and value.startswith(("data/", "elsewhere/")):
            yield value
        yield from paths(value)


@pytest.mark.parametrize("environment", ["local", "icons", "test"])
def test_all_that_a_run_writes_moves_with_the_data_folder(environment) -> None:
    loader = config(environment, data="elsewhere")
    parameters = loader["parameters"]
    shipped = ("data/01_raw", "data/06_models/embedded", "data/06_models/pretrain", "data/06_models/test_")
    assert parameters.pop("pretrain")
    assert [path for path in [*paths(loader["catalog"]), *paths(parameters)] if path.startswith("data/")
            and not path.startswith(shipped)] == []  # fmt: skip
    assert len([path for path in paths(parameters) if path.startswith("elsewhere/")]) == 8


@pytest.mark.parametrize("environment", ["local", "test", "icons", "sdxl", "sd15", *FLOWS])
def test_parameters_of_every_environment_are_valid(environment) -> None:
    checked = check_parameters(load(environment), register_pipelines())
    assert checked["content"].name == "penguin" and checked["style"].name == "knit"
    assert checked["frame"].rank == {"sdxl": 64, "sd15": 64}.get(environment, 32 if environment in FLOWS else 128)
    if environment in ("sdxl", "sd15", *FLOWS):
        assert checked["content_break"].steps == 1000 and checked["base_model"].resolution == 512
        assert checked["counterparts"].source == "drawn" and len(checked["counterparts"].drawn.contents) == 3


def test_invented_words_of_the_bases_contents_are_nearly_all_theirs_alone() -> None:
    """Of the shipped base's 568 two pairs share theirs, and pear's is another content's word; no adapter is called by one."""
    parameters = load("local")
    corpus = parameters["pretrain"]["corpus"]
    names = [*corpus["contents"], *corpus["held_out_contents"], *parameters["pretrain"]["further"]["contents"]]
    names = [name.replace("-", " ") for name in names]
    aliases = {alias_of(name) for name in names}
    tokens = {parameters[kind]["token"] for kind in ("content", "style")}
    assert len(aliases) >= len(names) - 2 and not aliases & tokens
    assert aliases & {word for name in names for word in name.split()} <= {"fork"}


def test_half_precision_of_gpus_is_refused_on_a_cpu() -> None:
    parameters = load("local")
    parameters["make"] |= {"device": "cpu", "precision": "fp16"}
    with pytest.raises(DeviceError, match=r"make\.precision is fp16, which needs a GPU"):
        check_devices(check_parameters(parameters, register_pipelines()))


def test_folders_of_counterparts_can_be_named_in_an_environment_that_draws_them() -> None:
    own = {"source": "folders", "styles": [{"path": "oil", "token": "qrv"}]}
    checked = check_parameters(config("sdxl", counterparts=own)["parameters"], register_pipelines())["counterparts"]
    assert checked.source == "folders" and [concept.name for concept in checked.styles] == ["oil"] and not checked.contents
    del own["source"]
    with pytest.raises(WrongParameterError, match="source is drawn, and contents or styles name folders"):
        check_parameters(config("sdxl", counterparts=own)["parameters"], register_pipelines())


@pytest.mark.parametrize("environment", ["sdxl", "sd15", *FLOWS])
def test_an_environment_is_for_the_family_of_its_model(environment) -> None:
    family = check_parameters(load(environment), register_pipelines())["base_model"].family
    (own,) = [each for each in FAMILIES.values() if each.environment == environment]
    assert family == own.__name__


@pytest.mark.parametrize("environment", ["sdxl", "flux2", "zimage"])
def test_settings_by_memory_are_valid_and_change_what_they_name(environment) -> None:
    loader = config(environment, memory=8, base_model={"offload": None})
    presets, pipelines = loader.presets(), register_pipelines()
    assert list(presets) == [8, 12, 24]
    for raw in presets.values():
        check_parameters(raw, pipelines)
    chosen = loader["parameters"]
    assert chosen == presets[8] | {"memory": 8} and presets[8] != presets[24]
    assert chosen["base_model"]["offload"] is None  # what is set for the run counts more


def test_own_pictures_need_no_name() -> None:
    parameters = load("local")
    parameters["content"]["path"] = "elsewhere/My cat!"
    assert check_parameters(parameters, register_pipelines())["content"].name == "My-cat"


def test_the_second_table_writes_over_nothing_of_the_first() -> None:
    def written(environment: str) -> set[str]:
        loader = config(environment)
        reports = {name: entry for name, entry in loader["catalog"].items() if name.startswith("benchmark_")}
        assert len(reports) == 8
        return {str(entry.get("filepath") or entry["path"]) for entry in reports.values()} | {
            loader["parameters"]["benchmark"]["folder"]
        }

    assert not written("local") & written("icons")
