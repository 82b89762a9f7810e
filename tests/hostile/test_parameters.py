"""Parameters that cannot be meant: refused before anything starts, in one line, by the key that was typed."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader
from kedro.pipeline import Pipeline
from tools.reference import parameters_of, schemas

from b4m_pipeline.common.config import RunParams
from b4m_pipeline.pipeline_registry import register_pipelines
from b4m_pipeline.prerequisites import WrongParameterError, check_folders, check_parameters
from b4m_pipeline.settings import CONFIG_LOADER_ARGS
from tests.hostile.helpers import is_one_line

ROOT = Path(__file__).parents[2]
EVIL = "{style.__class__.__mro__[1].__subclasses__}"


@cache
def base() -> dict[str, Any]:
    return OmegaConfigLoader(str(ROOT / "conf"), env="base", **CONFIG_LOADER_ARGS)["parameters"]


@cache
def pipelines():
    return register_pipelines()


def check(key: str, value: Any) -> dict[str, Any]:
    """conf/base's group with another value at a dotted key."""
    group, *path = key.split(".")
    values = changed(base()[group], path, value) if path else value
    return check_parameters({group: values}, reading(group))


@cache
def reading(group: str) -> dict[str, Pipeline]:
    """A pipeline of one node that reads a group; of none for what the run itself reads."""
    nodes = [node for pipeline in pipelines().values() for node in pipeline.nodes]
    return {"one": Pipeline([node for node in nodes if f"params:{group}" in node.inputs][:1])}


def changed(values: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if isinstance(values, list):
        return [changed(each, rest, value) if index == int(first) else each for index, each in enumerate(values)]
    values = values if isinstance(values, dict) else {}
    return values | {first: changed(values.get(first, {}), rest, value)}


def of_type(kind: type) -> list[str]:
    """Keys of all parameters of a type; entries of lists apart."""
    groups = [("", RunParams), *((f"{name}.", model) for name, model in schemas().items())]
    fields = [each for prefix, model in groups for each in parameters_of(model, prefix)]
    return [each.key for each in fields if kind in types(each.field.annotation) and "[]" not in each.key]


def types(annotation: Any) -> set[Any]:
    inner = getattr(annotation, "__args__", ()) if not isinstance(annotation, type) else ()
    return {annotation}.union(*map(types, inner)) if "list" not in str(annotation) else set()


@pytest.mark.parametrize("key", of_type(float))
def test_no_number_is_infinite_or_none(key) -> None:
    for value in (math.inf, -math.inf, math.nan, "inf", "nan", 1e300, -1e300):
        with pytest.raises(WrongParameterError) as error:
            check(key, value)
        assert str(error.value).startswith(f"{key}") and is_one_line(str(error.value))


def test_there_are_many_of_them() -> None:
    assert len(of_type(float)) > 60 and "counterparts.drawn.guidance_scale" in of_type(float)


@pytest.mark.parametrize("key", [key for key in of_type(int) if key.rpartition(".")[2] != "seed"])
def test_no_whole_number_is_larger_than_anything_can_be(key) -> None:
    for value in (10**12, -(10**12), 1.5, "many"):
        with pytest.raises(WrongParameterError) as error:
            check(key, value)
        assert str(error.value).startswith(f"{key}") and is_one_line(str(error.value))


@pytest.mark.parametrize("key", of_type(int) + of_type(float))
def test_every_number_has_a_smallest_value(key) -> None:
    with pytest.raises(WrongParameterError) as error:
        check(key, -(10**8))
    assert str(error.value).startswith(key)
    assert "greater than" in str(error.value) or "a valid tuple" in str(error.value)


@pytest.mark.parametrize("key", of_type(str))
def test_no_text_holds_what_cannot_be_stored(key) -> None:
    for value in ("a\0b", "a\x1bb", "\ud800", "x" * 6000, 5, ["a"], {"content": None}):
        with pytest.raises(WrongParameterError) as error:
            check(key, value)
        assert str(error.value).startswith(f"{key}") and is_one_line(str(error.value))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ingestion.background", [300, -1, 0], "ingestion.background[0]: input should be less than or equal to 255, got 300"),
        ("ingestion.background", [0, 0], "ingestion.background[2] must be given"),
        ("ingestion.buckets", {"step": 64, "max_ratio": 17}, "ingestion.buckets.max_ratio: "),
        ("ingestion.content_looks", {"comic": "a\nb"}, "ingestion.content_looks.comic: must be a word"),
        ("checkpoints", 5, "checkpoints: input should be a valid string, got 5"),
        ("checkpoints", None, "checkpoints: input should be a valid string, got None"),
        ("checkpoints", "", "checkpoints: must be a path"),
        ("checkpoints", "x" * 300, "checkpoints: must be a path of at most"),
        ("checkpoints", "~nobody-here/x", "is in the home folder of nobody here"),
        ("seed", 2**31, "seed: input should be less than"),
        ("frame.seed", -1, "frame.seed: input should be greater"),
        ("benchmark.seeds", [10**12], "benchmark.seeds: must be between"),
        ("library.prefix", "a/b", "library.prefix: must be letters"),
        ("library.prefix", "x" * 81, "library.prefix: must have at most 80 bytes"),
        ("library.alias", "latest", "library.alias: must not be latest"),
        ("library.alias", "v12", "library.alias: must not be latest"),
        ("library.folder", " ", "library.folder: must be a path"),
        ("library.pairs", [{"content": "cup", "style": "../ink"}], "library.pairs[0].style: must be letters"),
        ("library.pairs", [{"content": "cup", "stile": "ink"}], "did you mean 'style'?"),
        ("content.name", "x" * 300, "content.name: must have at most 80 bytes in UTF-8, got 300"),
        ("content.name", "名" * 27, "content.name: must have at most 80 bytes in UTF-8, got 81"),
        ("content.name", "a\nb", "content.name: must be letters"),
        ("content.path", "x" * 100, "content.name: must have at most 80 bytes"),
        ("content.path", "a\nb", "content.path: must be a path"),
        ("content.token", " ", "content.token: must be a word"),
        ("content.token", "a  b", "content.token: must be a word"),
        ("content.token", "snq ", "content.token: must be a word"),
        ("content.token", "a\tb", "content.token: must be a word"),
        ("content.token", "a\0b", "content.token: "),
        ("content.token", "x" * 81, "content.token: must have at most 80 characters"),
        ("content.noun", "emoji\nERROR", "content.noun: must be a word"),
        ("counterparts.contents.1.token", "\u202eqns", "counterparts.contents[1].token: must be a word"),
        (
            "counterparts.contents.1.nuon",
            "x",
            "counterparts.contents[1].nuon: there is no such parameter, did you mean 'noun'?",
        ),
        ("counterparts.drawn.contents", [{"word": "dog"}], "counterparts.drawn.contents[0].token must be given"),
        ("preservation.styles", ["a\nb"], "preservation.styles[0]: must be a word"),
        ("base_model.resolution", 10**6, "base_model.resolution: input should be less than or equal to 8192"),
        ("base_model.path", "", "base_model.path: must be a path"),
        ("make.learning_rte", 1e-3, "make.learning_rte: there is no such parameter, did you mean 'learning_rate'?"),
        ("make.validation.patience_", 3, "make.validation.patience_: there is no such parameter, did you mean 'patience'?"),
        ("make.rehearsal.imags", 3, "make.rehearsal.imags: there is no such parameter, did you mean 'images'?"),
        ("pretrain.clip.wdith", 3, "pretrain.clip.wdith: there is no such parameter, did you mean 'width'?"),
        ("compose.merge.rnak", 3, "compose.merge.rnak: there is no such parameter, did you mean 'rank'?"),
        ("compose.methods", ["halvs"], "compose.methods[0]: input should be 'halves'"),
        ("make.timestep_shift", "atuo", "make.timestep_shift: "),
        ("make", [1], "make: input should be a valid dictionary"),
        ("make", None, "make: input should be a valid dictionary"),
        ("make.rehearsal", "yes", "make.rehearsal: input should be a valid dictionary"),
        ("generate.prompts", {"a": 1}, "generate.prompts: input should be a valid list"),
        ("generate.prompts", ["a\0b"], "generate.prompts: must be text"),
        ("generate.images_per_prompt", 10**8, "generate.images_per_prompt: input should be less than or equal to 10000"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_that_cannot_be_meant(key, value, said) -> None:
    with pytest.raises(WrongParameterError) as error:
        check(key, value)
    assert said in str(error.value) and is_one_line(str(error.value))


TEMPLATES = (
    "evaluation.prompts", "evaluation.content_prompt", "evaluation.style_prompt", "evaluation.truth_path",
    "captioning.content_template", "captioning.style_suffix", "captioning.content_instruction", "captioning.style_variants",
    "ingestion.look_template", "preservation.template", "frame.words.template", "make.rehearsal.prompts",
    "counterparts.drawn.template",
)  # fmt: skip


@pytest.mark.parametrize("key", TEMPLATES)
@pytest.mark.parametrize(
    "more", ["{content:d}", "{style!r}", f"{{style:{EVIL}}}", EVIL, "{0}", "{}", "{", "}", "{style[0]}", "{self}"]
)
def test_templates_have_plain_fields_alone(key, more) -> None:
    group, *path = key.split(".")
    value = base()[group]
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    standard = "{article} {content} in {style} style"  # where conf/base has none
    before = value or ([standard] if key.endswith("prompts") else standard)
    with pytest.raises(WrongParameterError) as error:
        check(key, [before[0] + more] if isinstance(before, list) else before + more)
    assert str(error.value).startswith(key) and "hold" in str(error.value) and is_one_line(str(error.value))


def test_a_brace_itself_is_written_twice() -> None:
    assert check("captioning.style_suffix", " {{in}} {style}")["captioning"].style_suffix.format(style="x") == " {in} x"


@pytest.mark.parametrize("name", ["mkae", "contnt", "sede", "xyz", "", "make.steps", "a\nb", "x" * 3000])
def test_unknown_groups_are_said(name) -> None:
    with pytest.raises(WrongParameterError, match="there is no such parameter") as error:
        check_parameters({name: 1}, pipelines())
    assert "\n" not in str(error.value)


def test_many_faults_are_one_line() -> None:
    with pytest.raises(WrongParameterError, match=r"; and \d+ more$") as error:
        check_parameters({"make": {str(number): 0 for number in range(20)}}, pipelines())
    assert is_one_line(str(error.value))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_folder_to_write_to(tmp_path, place) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongParameterError, match=r"checkpoints: .* is a file: give another"):
        check_folders({"checkpoints": str(tmp_path / place)}, ["params:checkpoints"])
    check_folders({"checkpoints": str(tmp_path / place)}, ["params:make"])
    check_folders({"checkpoints": str(tmp_path / "new/folder")}, ["params:checkpoints"])
