"""Every environment's parameters are complete and valid, without a model being loaded."""

import pytest
from kedro.config import OmegaConfigLoader

from b4m_pipeline.pipeline_registry import register_pipelines
from b4m_pipeline.prerequisites import WrongParameterError, check_devices, check_parameters
from b4m_pipeline.pretrain.text import alias_of
from b4m_pipeline.settings import CONFIG_LOADER_ARGS
from tests.test_startup import ROOT


def load(environment: str) -> dict:
    arguments = CONFIG_LOADER_ARGS | {"default_run_env": environment}
    return OmegaConfigLoader(str(ROOT / "conf"), env=environment, **arguments)["parameters"]


@pytest.mark.parametrize("environment", ["local", "test", "sdxl", "sd15"])
def test_parameters_of_every_environment_are_valid(environment) -> None:
    checked = check_parameters(load(environment), register_pipelines())
    assert checked["content"].name == "penguin" and checked["style"].name == "knit"
    assert checked["frame"].rank == (64 if environment.startswith("sd") else 128)
    if environment in ("sdxl", "sd15"):
        assert checked["content_break"].steps == 1000 and checked["base_model"].resolution == 512


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
    with pytest.raises(WrongParameterError, match=r"make\.precision is fp16, which needs a GPU"):
        check_devices(check_parameters(parameters, register_pipelines()))


def test_own_pictures_need_no_name() -> None:
    parameters = load("local")
    parameters["content"]["path"] = "elsewhere/My cat!"
    assert check_parameters(parameters, register_pipelines())["content"].name == "My-cat"
