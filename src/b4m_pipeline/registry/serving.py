"""A registered adapter as a service: prompts in, PNG pictures out, with seeds and a scale for each half.

This is an MLflow flavor module. `save_model` writes what mlflow.diffusers writes, so that `mlflow.diffusers.load_model` reads
it as ever, and names this module as the loader of the python_function flavor, which `mlflow models serve` and
`mlflow.pyfunc.load_model` use: mlflow.diffusers' own knows neither seeds nor scales.
"""

import io
import logging
import threading
from pathlib import Path
from typing import Any, cast

import mlflow.diffusers
import pandas as pd
import torch
from mlflow.environment_variables import MLFLOW_DEFAULT_PREDICTION_DEVICE, MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_EXHAUSTED, TEMPORARILY_UNAVAILABLE
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from pydantic import Field, ValidationError

from b4m_pipeline.common.config import Strict
from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.provenance import file_digest
from b4m_pipeline.diffusion.families import base_model_id, denoiser_of, load_family
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.diffusion.sampling import ImageRequest, describe, draw, origin, png_info, put_on, require_base, settings_of
from b4m_pipeline.method.adapter import BASE_DETAILS, PEFT_NAME, URI_KEY, WEIGHTS_NAME, Adapter
from b4m_pipeline.method.combine import scale_halves, with_strengths
from b4m_pipeline.method.files import load_adapter
from b4m_pipeline.registry.adapters import DIGEST_KEY, logged_weights

logger = logging.getLogger(__name__)

MAX_PROMPTS = 32
"""Prompts of one request."""
MAX_LENGTH = 1000
"""Characters of a prompt."""
BATCH_SIZE = 8
"""Prompts that are drawn at once."""
MAX_ENLARGEMENT = 4
"""How many times the resolution that an adapter was trained at a side may be."""
_MODULE = "b4m_pipeline.serving"


class ServingError(ValueError):
    """A logged adapter that cannot be served as it is: its base model is not there or another."""


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
        raise ServingError(f"inference: {_first(error)}") from error
    types = {name: _TYPES[cast(type, field.annotation)] for name, field in PredictParams.model_fields.items()}
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("binary", "image")]),
        params=ParamSchema([ParamSpec(name, types[name], defaults[name]) for name in names]),
    )


def save_model(path: str, mlflow_model: Model | None = None, **kwargs: Any) -> None:
    """mlflow.diffusers.save_model, with this module as the python_function flavor's loader. The weights' digest is kept with
    the model's metadata; `base_model` and `device` can be overridden on loading (model_config)."""
    model = mlflow_model or Model()
    mlflow.diffusers.save_model(path=path, mlflow_model=model, **kwargs)
    weights = Path(path) / _weights_folder(model) / WEIGHTS_NAME
    model.metadata = (model.metadata or {}) | {DIGEST_KEY: file_digest(weights)}
    if revision := load_adapter(weights).metadata.get("base_revision"):  # MLflow has put the Hub's newest there
        model.flavors[mlflow.diffusers.FLAVOR_NAME]["base_model_revision"] = revision
    model.flavors["python_function"] |= {
        "loader_module": _MODULE,
        "config": {"base_model": model.flavors[mlflow.diffusers.FLAVOR_NAME]["base_model"], "device": ""},
    }
    model.save(str(Path(path) / MLMODEL_FILE_NAME))


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> "ServedAdapter":
    """MLflow's entry: the logged model in the folder `path`, ready to draw. Raises ServingError, AdapterError, GenerationError
    or FrameMismatchError if weights, frame and base model are not what was logged."""
    model, config = Model.load(path), model_config or {}
    adapter = load_adapter(logged_weights(Path(path), model))
    if model.model_id:
        adapter.metadata[URI_KEY] = f"models:/{model.model_id}"
    path_of_base = config.get("base_model") or model.flavors[mlflow.diffusers.FLAVOR_NAME]["base_model"]
    device = config.get("device") or MLFLOW_DEFAULT_PREDICTION_DEVICE.get() or "auto"
    return ServedAdapter(adapter, path_of_base, pick_device(device))


class ServedAdapter:
    """A base model with an adapter on it, loaded once, that answers one request at a time: neither schedulers nor tokenizers of
    a pipeline can be used by two threads at once, and a picture keeps all cores busy as it is."""

    def __init__(self, adapter: Adapter, base_model: str, device: str):
        """base_model: a folder, a single file, or a Hub id. Raises as `_load_pyfunc` does."""
        about = adapter.metadata
        if Path(base_model).is_absolute() and not Path(base_model).exists():
            raise ServingError(
                f"The base model of {about['name']} was at {base_model} and is not there any more. Put it back, or say where "
                """it is: MLFLOW_PYFUNC_INFERENCE_CONFIG='{"base_model": "/its/folder"}' mlflow models serve ..., or """
                "mlflow.pyfunc.load_model(uri, model_config={'base_model': '/its/folder'})"
            )
        self.resolution = int(about.get("resolution", PredictParams.model_fields["height"].default))
        further = {key: about[f"base_{key}"] for key in BASE_DETAILS if about.get(f"base_{key}")}
        base = BaseModelParams(path=base_model, resolution=self.resolution, **further)
        try:
            self.base = base_model_id(base)
            require_base(adapter, self.base)
            scale_halves(adapter)
        except (KeyError, TypeError) as error:
            raise ServingError(f"{about['name']} does not say what its frame is, so it cannot be scaled: {error!r}") from error
        self.adapter = adapter
        self.family = load_family(base)
        self.pipeline = self.family.load_pipeline(device)
        put_on(self.pipeline, adapter)
        self._scales: tuple[float, float] | None = (1.0, 1.0)
        self._lock = threading.Lock()

    def get_raw_model(self):
        """The diffusers pipeline, with the scales of the request before."""
        return self.pipeline

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> list[bytes]:
        """Draw the column `prompt` (or the only one) -> a PNG for each row; row i has the seed `seed` + i.

        params: see `PredictParams`. Raises MlflowException, which MLflow's server answers with: status 400 for prompts and
        params that cannot be drawn, 429 if the GPU's memory does not suffice, 503 if its turn did not come in time.
        """
        prompts, wanted = _prompts(data), self._check(params or {})
        requests = [ImageRequest(prompt, wanted.seed + index) for index, prompt in enumerate(prompts)]
        settings = GenerateParams(
            adapter=self.adapter.metadata["name"],
            prompts=prompts,
            negative_prompt=wanted.negative_prompt or None,
            steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            batch_size=BATCH_SIZE,
            content_scale=wanted.content_scale,
            style_scale=wanted.style_scale,
        )
        # Whoever waited for as long as the server waits has been told so already: nobody would see the pictures.
        if not self._lock.acquire(timeout=MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()):
            raise MlflowException("Too many requests are waiting: try again later", error_code=TEMPORARILY_UNAVAILABLE)
        try:
            self._scale(wanted.content_scale, wanted.style_scale)
            about = origin(self.adapter, self.base, settings)
            drawn = draw(self.pipeline, requests, **settings_of(settings, wanted.height, wanted.width))
            return [_png(describe(image, request, about)) for request, image in drawn]
        except torch.OutOfMemoryError as error:
            message = "The GPU's memory is full: ask for fewer prompts at once, or for smaller pictures"
            raise MlflowException(message, error_code=RESOURCE_EXHAUSTED) from error
        except Exception as error:  # a defect, whatever it is: MLflow would call it the client's (400) and send the traceback
            logger.exception("A request could not be answered")
            message = f"The pictures could not be drawn ({type(error).__name__}); the server's log says more"
            raise MlflowException(message, error_code=INTERNAL_ERROR) from error
        finally:
            self._lock.release()

    def _check(self, params: dict[str, Any]) -> PredictParams:
        size = {"height": self.resolution, "width": self.resolution}
        plain = {key: getattr(value, "item", lambda value=value: value)() for key, value in params.items() if value is not None}
        try:
            wanted = PredictParams(**size | plain)
        except ValidationError as error:
            raise _refused(_first(error)) from error
        most = MAX_ENLARGEMENT * self.resolution
        for name in ("height", "width"):
            if (given := getattr(wanted, name)) > most:
                raise _refused(
                    f"{name} must be at most {most}, {MAX_ENLARGEMENT} times what the adapter was trained at, got {given}"
                )
            if given % (multiple := self.family.side_multiple()):
                raise _refused(f"{name} must be a multiple of {multiple} with this base model, got {given}")
        if wanted.negative_prompt and not self.family.negative_prompts:
            raise _refused("negative_prompt: this base model takes none")
        return wanted

    @torch.no_grad()
    def _scale(self, content: float, style: float) -> None:
        """Write the adapter's tensors, scaled, over those in the pipeline, if they have other scales now."""
        if self._scales == (content, style):
            return
        self._scales = None  # of what is half written, should this be interrupted
        scaled, denoiser = with_strengths(self.adapter, content, style), denoiser_of(self.pipeline)
        for key, tensor in scaled.tensors.items():
            module, side, _ = key.rsplit(".", 2)
            getattr(denoiser.get_submodule(module), side)[PEFT_NAME].weight.copy_(tensor)
        self._scales = (content, style)


def _prompts(data: pd.DataFrame) -> list[str]:
    """The request's prompts. MLflow makes a table of one row of {"prompt": ["a", "b"]}, with a list in it."""
    column = data["prompt"] if "prompt" in data else data.iloc[:, 0]
    cells = [list(cell) if not isinstance(cell, str) and hasattr(cell, "__iter__") else [cell] for cell in column]
    prompts = [prompt for cell in cells for prompt in cell]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise _refused(f"a request has 1 to {MAX_PROMPTS} prompts, got {len(prompts)}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise _refused(f"prompt {index} is empty or no text: {prompt!r}")
        if len(prompt) > MAX_LENGTH:
            raise _refused(f"prompt {index} has {len(prompt)} characters, at most {MAX_LENGTH} are taken")
    return prompts


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors()[0]
    return f"{first['loc'][0]}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"


def _refused(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def _png(picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=png_info(picture))
    return buffer.getvalue()


def _weights_folder(model: Model) -> str:
    return model.flavors[mlflow.diffusers.FLAVOR_NAME]["adapter_weights"]
