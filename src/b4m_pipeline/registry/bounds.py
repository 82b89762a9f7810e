"""What a request to a served adapter may ask for, and how it is refused: one line, and not all of what it said."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType
from pydantic import Field, ValidationError

from b4m_pipeline.common.config import Strict, plain_text

MAX_PROMPTS = 32
"""Prompts of one request."""
MAX_LENGTH = 1000
"""Characters of a prompt."""
MAX_ENLARGEMENT = 4
"""How many times the resolution that an adapter was trained at a side may be."""
MAX_WORK = 1000
"""Of one request: prompts, times their area in areas of the trained size, times steps and DECODING. 32 prompts of 25 steps."""
DECODING = 5
"""Steps that take as long as what is done once for each picture."""
_SHOWN = 60  # characters of a value that is refused


class ServingError(ValueError):
    """A logged adapter that cannot be served as it is: its base model is not there or another, its file is damaged."""


class Answer(MlflowException):
    """An answer other than pictures. MLflow's server puts the request's data before an error's message; this message stays as
    it is. retry_after: seconds after which to ask again."""

    def __init__(self, message: str, error_code: int, retry_after: int | None = None):
        super().__init__(message, error_code=error_code)
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        return self._message

    @message.setter
    def message(self, value: str) -> None:
        self._message = getattr(self, "_message", None) or value


def refused(message: str) -> Answer:
    """Status 400."""
    return Answer(message, INVALID_PARAMETER_VALUE)


def shown(value: Any) -> str:
    """The beginning of a refused value."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text[:_SHOWN]) + "..." if len(text) > _SHOWN else repr(value)


class PredictParams(Strict):
    """Parameters of a request, with their bounds. Sides in pixels, also at most MAX_ENLARGEMENT times the resolution.

    Steps and guidance are conf/base's, for an adapter that was registered without any; runs and `kedro register` give the
    environment's (conf/<env>/globals.yml)."""

    num_inference_steps: int = Field(20, ge=1, le=100)
    guidance_scale: float = Field(2.0, ge=0, le=30, allow_inf_nan=False)
    height: int = Field(512, ge=8, multiple_of=8)
    width: int = Field(512, ge=8, multiple_of=8)
    negative_prompt: str = Field("", max_length=MAX_LENGTH)
    seed: int = Field(0, ge=0, lt=2**62)
    """Of the first prompt's picture; the next one's is seed + 1, and so on."""
    content_scale: float = Field(1.0, ge=0, le=4, allow_inf_nan=False)
    style_scale: float = Field(1.0, ge=0, le=4, allow_inf_nan=False)
    adapter: str = Field("", max_length=300)
    """Another one of the registry to draw with, models:/NAME@ALIAS or models:/NAME/VERSION, where the server allows it."""


_TYPES = {int: "long", float: "double", str: "string"}


def predict_signature(about: dict[str, str], inference: dict[str, Any]) -> ModelSignature:
    """Prompts in, PNG bytes out. about: an adapter's metadata; a half has its own scale alone, a merge has none, and pictures
    are as large as the adapter was trained for. inference: further defaults. Raises ServingError for a name or a value that
    `PredictParams` does not take."""
    scales = {"content": {"style_scale"}, "style": {"content_scale"}, "merged": {"content_scale", "style_scale"}}
    names = [name for name in PredictParams.model_fields if name not in scales.get(about["kind"], set())]
    if unknown := set(inference) - set(names):
        raise ServingError(f"inference has no settings {sorted(unknown)}; it has {names}")
    size = {key: int(about["resolution"]) for key in ("height", "width") if "resolution" in about}
    try:
        defaults = PredictParams(**size | inference).model_dump()
    except ValidationError as error:
        raise ServingError(f"inference: {first_of(error)}") from error
    types = {name: _TYPES[cast(type, field.annotation)] for name, field in PredictParams.model_fields.items()}
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "prompt")]),  # as text, MLflow would make "None" of null and "5" of 5
        outputs=Schema([ColSpec("binary", "image")]),
        params=ParamSchema([ParamSpec(name, types[name], defaults[name]) for name in names]),
    )


def prompts_of(data: pd.DataFrame) -> list[str]:
    """The request's prompts: the column `prompt`, or the only one. MLflow makes a table of one row of {"prompt": ["a", "b"]},
    with a list in it. Raises Answer (400)."""
    if not len(data.columns):
        raise refused("the request has no prompts")
    if any(isinstance(label, str) for label in data.index):  # pandas' table of {"prompt": {"a": "b"}}
        raise refused("a prompt is a text, got an object")
    column = data["prompt"] if "prompt" in data else data.iloc[:, 0]
    cells = [list(cell) if isinstance(cell, list | tuple | np.ndarray) else [cell] for cell in column]
    return require_prompts([prompt for cell in cells for prompt in cell])


def require_prompts(prompts: Sequence[Any]) -> list[str]:
    """The prompts, if they are texts that can be drawn. Raises Answer (400)."""
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise refused(f"a request has 1 to {MAX_PROMPTS} prompts, got {len(prompts)}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise refused(f"prompt {index} is empty or no text: {shown(prompt)}")
        if len(prompt) > MAX_LENGTH:
            raise refused(f"prompt {index} has {len(prompt)} characters, at most {MAX_LENGTH} are taken")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in prompt):
            raise refused(f"prompt {index} has half a surrogate pair, which no tokenizer reads: {shown(prompt)}")
        try:
            plain_text(prompt)
        except ValueError as error:
            raise refused(f"prompt {index} {error}") from error
    return [str(prompt) for prompt in prompts]


def require_work(prompts: int, params: PredictParams, resolution: int) -> None:
    """Raise Answer (400) if all of it together is too much for one request."""
    area = params.height * params.width / resolution**2
    work = prompts * area * (params.num_inference_steps + DECODING)
    if work > MAX_WORK:
        raise refused(
            f"{prompts} prompts of {params.width} x {params.height} pixels in {params.num_inference_steps} steps are too much "
            f"for one request ({work:.0f} units of work, at most {MAX_WORK}): ask for fewer, smaller pictures or fewer steps"
        )


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors()[0]
    return f"{str(first['loc'][0])[:_SHOWN]}: {first['msg'][0].lower()}{first['msg'][1:]}, got {shown(first['input'])}"
