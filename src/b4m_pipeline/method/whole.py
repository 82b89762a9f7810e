"""Whether an adapter is whole: the one check behind registering, fetching, composing, drawing, exporting and serving.

What a file says of itself is not believed: it becomes names of folders and registered models, lines of logs and prompts, and a
broken one would be found out after hours, or never.
"""

import unicodedata
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Json, ValidationError

from b4m_pipeline.common.config import LARGEST_SIDE, LONGEST_TEXT, faults, plain_name, plain_words, shown
from b4m_pipeline.method.adapter import DIRECTIONS_KEY, LONGEST_ADAPTER_NAME, Adapter, AdapterError
from b4m_pipeline.method.directions import unpack_directions
from b4m_pipeline.method.frame import FrameMismatchError, frame_of
from b4m_pipeline.method.params import Side

_SIDES = ("lora_A", "lora_B")
_BOTH = ("half", "content_side", "content_name", "style_name", "content_token", "style_token", "noun", "parents")
_HALF = ("half", "token", "noun")
_OF_KIND = {"content": _HALF, "style": _HALF, "reconstructed": _BOTH, "made": _BOTH, "merged": ("content_name", "style_name")}


def _line(value: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value):
        raise ValueError(f"must be one line of text, got {shown(value)}")
    return value


def _name(value: str) -> str:
    return plain_name(value, LONGEST_ADAPTER_NAME)


def _side(value: str) -> str:
    if not (value.isdecimal() and len(value) < 6 and 8 <= int(value) <= LARGEST_SIDE and int(value) % 8 == 0):
        raise ValueError(f"must be a multiple of 8 pixels up to {LARGEST_SIDE}, got {shown(value)}")
    return value


Line = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_line)]
Given = Annotated[Line, Field(min_length=1)]
NameText = Annotated[str, AfterValidator(_name)]
WordsText = Annotated[str, AfterValidator(plain_words)]


class _Described(BaseModel):
    """What is known of the base model of an adapter without a frame."""

    base_model: Given | None = None


class _Framed(BaseModel):
    """Of `Frame.describe`. Fields that no frame has are `Frame`'s to refuse."""

    model_config = ConfigDict(allow_inf_nan=False)

    seed: int
    rank: int = Field(ge=2)
    alpha: float = Field(gt=0)
    split: float = Field(gt=0, lt=1)
    init: Literal["exact", "paper"]
    scale: float = Field(gt=0)
    base_model: Given
    layers: dict[Given, tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]] = Field(min_length=1)
    words: Given | None = None


class _Pictures(BaseModel):
    number: int
    licences: dict[Line, int]
    sha256: list[Line]


class _Recipe(BaseModel):
    """Parameters, by what they are of."""

    model_config = ConfigDict(extra="allow")

    frame: dict[str, Any] = {}
    train: dict[str, Any] = {}
    merge: dict[str, Any] = {}


class _Metadata(BaseModel):
    """Fields of an adapter's metadata, all of which are text; JSON in some. Others may stand there, too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Line]

    kind: Literal["content", "style", "reconstructed", "made", "merged", "lora"]
    name: NameText
    base_model: Given
    frame: Given
    frame_config: Json[dict[str, Any]]
    data_digest: Given
    params: Json[_Recipe]
    code_version: Given
    half: Side | Literal["both"] = "both"
    content_side: Side = "lora_A"
    content_name: NameText = "unnamed"
    style_name: NameText = "unnamed"
    token: WordsText = ""
    content_token: WordsText = ""
    style_token: WordsText = ""
    noun: WordsText = ""
    style_noun: WordsText = ""
    resolution: Annotated[str, AfterValidator(_side)] = "512"
    parents: Json[list[Line]] = []
    pictures: Json[dict[Line, _Pictures]] = {}
    kept_step: str = Field("0", pattern=r"^[0-9]{1,9}$")
    kept_figures: Json[dict[Line, dict[str, float]]] = {}
    recipe_code: Json[dict[Line, Line]] = {}
    recipe_libraries: Json[dict[Line, Line]] = {}
    frame_directions: Json[list[dict[str, Any]]] = []


def require_whole(adapter: Adapter, source: str) -> None:
    """Raise AdapterError, saying what is wrong with it, unless an adapter is what `save_adapter` writes: metadata that can be
    believed, a tensor pair for each layer of its frame in that layer's shape, and finite numbers. source: where it was had."""
    try:
        _require_metadata(adapter)
        _require_tensors(adapter)
        if adapter.metadata["kind"] in ("merged", "lora"):
            return
        _require_frame(adapter)
    except AdapterError as error:
        raise AdapterError(f"{source} is no whole adapter: {error}. Train it again or fetch another version") from error


def _require_metadata(adapter: Adapter) -> None:
    about = adapter.metadata
    if not isinstance(about, dict):
        raise AdapterError(f"its metadata is {shown(about)}, no mapping")
    if odd := next((key for key, value in about.items() if not isinstance(value, str)), None):
        raise AdapterError(f"its metadata's {shown(odd)} is no text: {shown(about[odd])}")
    try:
        known = _Metadata.model_validate(about)
        framed = known.kind not in ("merged", "lora")
        (_Framed if framed else _Described).model_validate(known.frame_config)
    except ValidationError as error:
        place = "" if error.title == _Metadata.__name__ else "frame_config."
        raise AdapterError(f"its metadata is not what was written: {faults(error, _Metadata, place)[0]}") from error
    except RecursionError as error:
        raise AdapterError("its metadata is nested too deeply") from error
    needed = _OF_KIND.get(known.kind, ())
    if missing := [key for key in needed if key not in about or (not about[key] and key != "noun")]:
        raise AdapterError(f"its metadata says that it is {known.kind}, and lacks {', '.join(missing)}")
    if ("content_token" in about) != ("style_token" in about):
        raise AdapterError("its metadata has one of content_token and style_token: both or neither belong there")
    if known.kind in ("content", "style") and (known.half == "both" or "halves" not in known.params.frame):
        raise AdapterError(f"its metadata says that it is a {known.kind} half, and not which, or not how it was trained")


def _require_tensors(adapter: Adapter) -> None:
    """Pairs lora_A (r, in, ...) and lora_B (out, r, ...) of one rank."""
    rank: Any = adapter.lora_config.get("r")
    alpha: Any = adapter.lora_config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < float("inf"):
        raise AdapterError(f"its rank is {shown(rank)} and its alpha {shown(alpha)}")
    if not adapter.tensors:
        raise AdapterError("it holds no tensors")
    for key, tensor in adapter.tensors.items():
        module, _, ending = key.rpartition(".lora_")
        if not module or ending not in ("A.weight", "B.weight"):
            raise AdapterError(f"it holds {shown(key)}, which is no part of a LoRA")
        if any(f"{module}.{side}.weight" not in adapter.tensors for side in _SIDES):
            raise AdapterError(f"its layer {shown(module)} lacks one of its two factors")
        if tensor.ndim not in (2, 4) or tensor.shape[0 if ending == "A.weight" else 1] != rank:
            raise AdapterError(f"{shown(key)} has the shape {tuple(tensor.shape)}, and its rank is {rank}")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise AdapterError(f"{shown(key)} has values that are no numbers")


def _require_frame(adapter: Adapter) -> None:
    try:
        frame, directions = frame_of(adapter), unpack_directions(adapter.metadata.get(DIRECTIONS_KEY, "[]"))
    except FrameMismatchError as error:
        said = shown(adapter.metadata["frame"])
        raise AdapterError(f"its frame is not {said}, as it says: it was changed, or made by older code") from error
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise AdapterError(f"its frame cannot be read ({error})") from error
    if (adapter.rank, float(adapter.lora_config["lora_alpha"])) != (frame.rank, float(frame.alpha)):
        raise AdapterError(f"its rank or alpha is not its frame's, {frame.rank} and {frame.alpha}")
    if set(adapter.modules()) != set(frame.layers):
        odd = sorted(set(adapter.modules()) ^ set(frame.layers))
        raise AdapterError(f"its layers are not its frame's: {len(odd)} are too many or missing, such as {shown(odd[0])}")
    for name, (m, n) in frame.layers.items():
        for side, shape in (("lora_A", (frame.rank, n)), ("lora_B", (m, frame.rank))):
            if (got := tuple(adapter.tensors[f"{name}.{side}.weight"].shape)) != shape:
                raise AdapterError(f"{side} of {shown(name)} has the shape {got}, where its frame has {shape}")
        if name in directions and any(len(part) != n for part in (directions[name].frozen, directions[name].learnt)):
            raise AdapterError(f"the directions of {shown(name)} are not of its {n} inputs")
    if not all(torch.isfinite(part).all() for own in directions.values() for part in (own.frozen, own.learnt)):
        raise AdapterError("its frame's directions have values that are no numbers")
