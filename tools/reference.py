"""docs/reference/parameters.md: every parameter with its values, its bounds and its meaning, from the schemas and conf/.

`python -m tools.reference` writes it again.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from kedro.validation.type_extractor import TypeExtractor
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from b4m_pipeline.common.config import RunParams
from b4m_pipeline.pipeline_registry import register_pipelines
from b4m_pipeline.settings import CONFIG_LOADER_ARGS, ConfigLoader

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/parameters.md"
ENVIRONMENTS = ("base", "sdxl", "sd15")
_LONGEST = 48  # characters of a list that is shown; of a longer one, the number of its entries is
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", NoneType: "`null`"}
_SIGNS = {
    Ge: ("ge", "≥ {}"),
    Gt: ("gt", "> {}"),
    Le: ("le", "≤ {}"),
    Lt: ("lt", "< {}"),
    MultipleOf: ("multiple_of", "multiple of {}"),
}
_INTRODUCTION = """# Parameters

<!-- Written by `python -m tools.reference` from the params.py files and conf/. Change those, not this page. -->

Each parameter by the key that `--params` takes, as in `--params="content_break.steps=600,frame.rank=64"`. The column *base*
has the value in [`conf/base/`](../../conf/base), or the default where the files state none; *sdxl* and *sd15* have what
`--env=sdxl` and `--env=sd15` change. Other base models' environments are in `conf/NAME/parameters.yml`: sd35, flux, flux2,
zimage, qwen. `null` means that there is none. `KEY[].FIELD` is a field of each entry of a list.
Unknown names and values out of bounds are refused before anything is trained. For all: a number is finite and at most 10^9, a
text has at most 5000 characters, a name (of a content, a style, a prefix) at most 80 bytes, and templates hold no fields but
those that are named.

Values of `--params` are YAML. Text that holds one of ``{}[]:,&*!|>'"%@`#`` goes into quotation marks, the whole into
apostrophes: `--params='captioning.content_template="{article} {content}, lit from the left"'`. A list stands in brackets:
`--params="generate.prompts=[one, two]"`.

Each environment has one pair of `steps` and `guidance_scale` for `evaluation`, `generate`, the stages' `samples` and the
registered adapters: `drawing` in its `globals.yml`. Change it for all of them in `conf/local/globals.yml` (`drawing:
{guidance_scale: 3.0}`), or for one: `--params="evaluation.guidance_scale=3"`.
"""


@dataclass(frozen=True)
class Parameter:
    """A field of a schema, by the key that a user types; `[]` stands for any entry of a list."""

    key: str
    field: FieldInfo
    model: type[BaseModel]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


@cache
def values_of(environment: str) -> dict[str, Any]:
    """Kedro's parameters of an environment of this repository; of `base` without conf/local."""
    return ConfigLoader(str(ROOT / "conf"), env=environment, **CONFIG_LOADER_ARGS)["parameters"]


@cache
def schemas() -> dict[str, type[BaseModel]]:
    """Top-level key -> schema, as the pipelines' nodes are annotated. A plain value has none: see RunParams."""
    return TypeExtractor(register_pipelines()).extract_types_from_pipelines()


def parameters_of(model: type[BaseModel], prefix: str) -> Iterator[Parameter]:
    """All fields below `prefix`, those of nested models and of lists' entries included. Entries that another key describes, as
    counterparts are described by `content`, are not entered."""
    for name, field in model.model_fields.items():
        yield Parameter(f"{prefix}{name}", field, model)
        if nested := nested_model(field.annotation):
            yield from parameters_of(nested, f"{prefix}{name}.")
        elif (entry := entry_model(field.annotation)) and entry not in schemas().values():
            yield from parameters_of(entry, f"{prefix}{name}[].")


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model of `Model` or `Model | None`."""
    return next((each for each in _choices(annotation) if isinstance(each, type) and issubclass(each, BaseModel)), None)


def entry_model(annotation: Any) -> type[BaseModel] | None:
    """The model of `list[Model]`, alone or as one choice of several."""
    entries = [get_args(each)[0] for each in _choices(annotation) if get_origin(each) is list]
    return next((each for each in entries if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def stated(values: Any, key: str) -> Any:
    """The value at a dotted key; `...` if there is none, or if the key leads into a list."""
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return ...
        values = values[name]
    return values


def meaning(parameter: Parameter) -> str:
    """The docstring under a field, or that of the model that the field is a group of. Raises KeyError if there is neither."""
    said = (_docstrings(each).get(parameter.name) for each in parameter.model.__mro__)
    own = next((text for text in said if text), None)
    if own is None:
        nested = nested_model(parameter.field.annotation)
        if nested is None:
            raise KeyError(f"{parameter.model.__name__}.{parameter.name} has no docstring")
        own = nested.__doc__
    return _one_line(own)


@cache
def _docstrings(model: type) -> dict[str, str]:
    """Field -> the string that stands below it in the class's source."""
    if model in (object, BaseModel) or not issubclass(model, BaseModel):
        return {}
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(model))).body)
    pairs = zip(body, body[1:], strict=False)
    return {
        field.target.id: below.value.value
        for field, below in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def bounds(field: FieldInfo) -> str:
    """Type and bounds in words."""
    limits = []
    for each in field.metadata:
        if type(each) in _SIGNS:
            attribute, text = _SIGNS[type(each)]
            limits.append(text.format(_number(getattr(each, attribute))))
        elif isinstance(each, MinLen):
            limits.append("not empty" if each.min_length == 1 else f"{each.min_length} or longer")
        elif isinstance(each, MaxLen):
            limits.append(f"{each.max_length} or shorter")
        elif pattern := getattr(each, "pattern", None):
            limits.append(f"matching `{pattern}`")
    choices = list(_choices(field.annotation))
    nullable = NoneType in choices
    text = " or ".join(_type(each) for each in choices if each is not NoneType)
    return ", ".join([text, *limits]) + (", or `null`" if nullable else "")


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"{len(inner)} {_many(inner[0])}"
    if origin is dict:
        return f"mapping to {_many(inner[1])}"
    if origin is list:
        entry = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
        if get_origin(entry) is Literal:
            return f"list of {_type(entry)}"
        if entry in _PLAIN:
            return f"list of {_many(entry)}"
        like = next((key for key, model in schemas().items() if model is entry), None)
        return f"list of groups like [{like}](#{like})" if like else "list of groups"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    raise TypeError(f"no words for {annotation}")


def _many(annotation: Any) -> str:
    text = _type(annotation)
    return text.replace("list", "lists", 1) if text.startswith("list") else f"{text}s"


def _number(value: float) -> str:
    text = str(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _value(value: Any) -> str:
    """A cell: the value as YAML has it, or how many entries it has. Nothing for a group, whose fields have their own cells."""
    if value is ...:
        return ""
    if isinstance(value, list | tuple) and (len(str(value)) > _LONGEST or any(isinstance(each, dict) for each in value)):
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}"
    if isinstance(value, list | tuple | dict):
        value = list(value) if isinstance(value, tuple) else value
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()
        return f"`{text}`" if len(text) <= _LONGEST else f"{len(value)} entries"
    if isinstance(value, str):
        return f"`{value}`" if value and value == value.strip() else f'`"{value}"`'
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else _number(value)}`"


def _cells(parameter: Parameter, values: dict[str, dict]) -> list[str]:
    """The value in base, and in the other environments where it differs."""
    default = ... if parameter.field.is_required() else parameter.field.get_default()
    base, *others = (stated(values[environment], parameter.key) for environment in ENVIRONMENTS)
    base = default if base is ... else base
    grouped = nested_model(parameter.field.annotation) is not None
    if grouped and not isinstance(base, NoneType):
        return [""] * len(ENVIRONMENTS)
    return [_value(base), *("" if other in (..., base) else _value(other) for other in others)]


def _one_line(text: str) -> str:
    """A docstring as one line of Markdown, with the fields of templates as code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"\{\w+\}", r"`\g<0>`", part) for part in parts)


def _table(parameters: list[Parameter], values: dict[str, dict]) -> str:
    titles = ["parameter", *ENVIRONMENTS, "bounds", "meaning"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for each in parameters:
        cells = [f"`{each.key}`", *_cells(each, values), bounds(each.field), meaning(each)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole page. Raises KeyError for a parameter without a meaning."""
    values = {environment: values_of(environment) for environment in ENVIRONMENTS}
    plain = [key for key in values["base"] if key not in schemas()]
    if unknown := set(plain) - set(RunParams.model_fields):
        raise KeyError(f"no schema describes {sorted(unknown)}: annotate their nodes, or add them to RunParams")
    groups = [("The run", RunParams, ""), *((key, model, f"{key}.") for key, model in schemas().items())]
    sections = [
        f"## {title}\n\n{_one_line(model.__doc__)}\n\n{_table([*parameters_of(model, prefix)], values)}\n"
        for title, model, prefix in groups
    ]
    return "\n".join([_INTRODUCTION, *sections])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
