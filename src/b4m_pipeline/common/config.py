"""What all parameter schemas share. Each package has its own in params.py.

conf/base has the values that a run has. A field has either no default here, or the one that conf/base states, too
(tests/test_conf.py). What is rarely set has its default in the schema alone.
"""

import difflib
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

LONGEST_NAME = 80
"""Bytes of a name in UTF-8: two of them, a stage, a digest and endings are one file's name, of at most 255 bytes."""
LONGEST_TEXT = 5000
"""Characters of any text."""
LARGEST = 10**9
"""No number is larger, seeds and pixel limits aside: what is, is a slip, or overflows."""
LARGEST_SIDE = 8192
"""Pixels a side: no base model of today draws as large."""
_LONGEST_PATH, _LONGEST_PART = 4096, 255
_CHOICES = ("bool", "dict", "float", "int", "list", "str", "tuple")  # what Pydantic calls them in a place
_LISTED = 8  # names that a message may list
_SHOWN = 60  # characters of a wrong value that a message quotes


def plain_name(value: str, longest: int = LONGEST_NAME) -> str:
    """A name of at most `longest` bytes as it is. Raises ValueError if it cannot be a folder's, a file's and a registered
    model's: such have no separators, and no dots, which MLflow's names must not have."""
    if not value or not all(c.isalnum() or c in "-_" for c in value):
        raise ValueError(f"must be letters, digits, '-' or '_', got {shown(value)}")
    if (length := len(value.encode())) > longest:
        raise ValueError(f"must have at most {longest} bytes in UTF-8, got {length} ({shown(value)})")
    return value


def plain_words(value: str) -> str:
    """A word, or several with a blank between them, as they are. Raises ValueError for anything else: prompts are put together
    of such, and a word is looked for in them."""
    if value != " ".join(value.split()) or any(unicodedata.category(c)[0] == "C" for c in value):
        raise ValueError(f"must be a word, or words with one blank between them, got {shown(value)}")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"must have at most {LONGEST_NAME} characters, got {len(value)} ({shown(value)})")
    return value


def plain_text(value: str) -> str:
    """A text as it is. Raises ValueError if it cannot be stored or drawn: control characters other than line breaks and tabs,
    halves of surrogate pairs, more than LONGEST_TEXT characters."""
    if odd := next((c for c in value if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")), None):
        raise ValueError(f"must be text, and holds the character {ascii(odd)}")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"must have at most {LONGEST_TEXT} characters, got {len(value)}")
    return value


def plain_alias(value: str) -> str:
    """A name that MLflow takes as an alias, as it is. Raises ValueError."""
    if plain_name(value).lower() == "latest" or re.fullmatch(r"[vV]\d+", value):
        raise ValueError(f"must not be latest or like v1, which MLflow keeps for itself, got {shown(value)}")
    return value


def plain_path(value: str) -> str:
    """A path as it is. Raises ValueError if no file system has such."""
    if not value.strip() or any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise ValueError(f"must be a path, got {shown(value)}")
    if len(value.encode()) > _LONGEST_PATH or max(len(part.encode()) for part in re.split(r"[/\\]", value)) > _LONGEST_PART:
        raise ValueError(f"must be a path of at most {_LONGEST_PATH} bytes, {_LONGEST_PART} a part, got {shown(value)}")
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"must be a path, and {shown(value)} is in the home folder of nobody here") from error
    return value


Name = Annotated[str, AfterValidator(plain_name)]
Alias = Annotated[str, AfterValidator(plain_alias)]
PathText = Annotated[str, AfterValidator(plain_path)]
"""A path, or something else that may stand in its place: a Hub id, a version in the registry."""
Words = Annotated[str, Field(min_length=1), AfterValidator(plain_words)]
"""A word, or several, in prompts."""


def shown(value: Any) -> str:
    """A wrong value in a message: in one line, and not longer than a message should be."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _checked(value: Any) -> Any:
    """Any value of a parameter, whatever it is for. Raises ValueError for text or a number that nothing can be done with."""
    if isinstance(value, str):
        plain_text(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _checked(key), _checked(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _checked(inner)
    elif isinstance(value, int | float) and abs(value) > LARGEST:
        raise ValueError(f"must be between {-LARGEST} and {LARGEST}")
    return value


class Strict(BaseModel):
    """Refuses unknown names, so that a typo is an error instead of a default, numbers that are none, and text that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _usable(cls, value: Any, info: ValidationInfo) -> Any:
        return value if info.field_name == "seed" else _checked(value)


class RunParams(Strict):
    """What belongs to no group."""

    seed: int = Field(0, strict=True, ge=0, lt=2**31)
    """Decides all randomness; the images of a prompt are drawn with `seed`, `seed` + 1, and so on."""
    data: PathText = "data"
    """Folder that runs write to. A second run at the same time needs another one; pictures and base model are read from where
    their own parameters say."""
    checkpoints: PathText = "data/06_models/checkpoints"
    """Folder of the checkpoints of trainings under way. A killed run continues from them."""
    encoding_cache: PathText | None = "data/05_model_input/encoded"
    """Folder of encoded pictures and prompts, for all runs; it may be deleted. Null: none is kept."""
    reuse: bool = Field(True, strict=True)
    """Use an adapter of the registry that was made from the same pictures, parameters and code instead of training it again."""
    memory: int | None = Field(None, strict=True, ge=1, le=LARGEST)
    """GB of the GPU's memory: settings that fit into it, where the environment has some (its `presets`). What is set for the
    run itself counts more. Null: the environment as it is."""


def with_fields(needed: str, optional: str = "") -> AfterValidator:
    """For Annotated[str, ...]: a format string that must hold some fields and may hold others (names, blanks between them), as
    {name} alone: what a format string can do besides, look into its values or reformat them, has no use here."""
    must, may = needed.split(), optional.split()

    def check(value: str, info: ValidationInfo) -> str:
        rules = [("must", must), ("may", may)]
        said = [f"{verb} hold {', '.join(map('{{{}}}'.format, names))}" for verb, names in rules if names]
        rule = f"{info.field_name} {' and '.join(said)}"
        try:
            parts = [(name, form, way) for _, name, form, way in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"{rule}; got {shown(value)} ({error}; a brace itself is written twice)") from error
        used = {name for name, _, _ in parts}
        if not set(must) <= used <= {*must, *may} or any(form or way for _, form, way in parts):
            raise ValueError(f"{rule}; got {shown(value)}")
        return value

    return AfterValidator(check)


def faults(error: ValidationError, model: Any, prefix: str = "") -> list[str]:
    """What is wrong, a phrase each, by the key that a user types. model: what was validated, a schema or
    a choice with one in it; prefix: its own key, with a dot."""
    schema = next(_models_in(model), None)
    found = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")  # slips first
    return list(dict.fromkeys(_fault(each, schema, prefix) for each in found))


def _fault(fault: Any, model: type[BaseModel] | None, prefix: str) -> str:
    *parents, last = fault["loc"] or ("",)
    known, place = _schema_at(model, parents), _key((*parents, last), prefix) if fault["loc"] else prefix.removesuffix(".")
    if fault["type"] == "extra_forbidden":
        return (
            f"{_key(parents, prefix)}.{named(last)}: ".lstrip(".")
            + f"{unknown(str(last), known.model_fields if known else {})}"
        )
    said = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{place} must be given"
    if fault["type"] == "string_type" and isinstance(fault["input"], dict | list):
        said += " (put text with brackets or braces into quotation marks)"
    quoted = "" if fault["type"] == "value_error" else f", got {shown(fault['input'])}"
    return f"{place}: {said[:1].lower()}{said[1:]}{quoted}"


def named(key: Any) -> str:
    """A key that a user typed, in a message."""
    return key if isinstance(key, str) and key.isidentifier() else shown(key)


def unknown(name: str, known: Any) -> str:
    """What to say of a name that is none of those that are known."""
    if close := difflib.get_close_matches(name, known, n=1):
        return f"there is no such parameter, did you mean {close[0]!r}?"
    listed = f": there are {', '.join(sorted(known))}" if 0 < len(known) <= _LISTED else ""
    return f"there is no such parameter{listed or '; docs/reference/parameters.md has them all'}"


def _key(loc: Sequence[Any], prefix: str) -> str:
    """content.path, benchmark.pairs[0].content. What Pydantic adds for a choice between types is left out."""
    text = prefix
    for part in loc:
        if isinstance(part, int):
            text = f"{text.removesuffix('.')}[{part}]."
        elif str(part).isidentifier() and part not in _CHOICES:
            text += f"{part}."
    return text.removesuffix(".")


def _schema_at(model: type[BaseModel] | None, loc: list[Any]) -> type[BaseModel] | None:
    """The schema that a place in another is described by."""
    for part in loc:
        if isinstance(part, str) and model is not None and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), None)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated, list, tuple, dict):
        for inner in get_args(annotation):
            if inner is not NoneType:
                yield from _models_in(inner)
