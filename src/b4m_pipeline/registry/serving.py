"""A registered adapter as a service: prompts in, PNG pictures out, with seeds and a scale for each half.

This is an MLflow flavor module. `save_model` writes what mlflow.diffusers writes, so that `mlflow.diffusers.load_model` reads
it as ever, and names this module as the loader of the python_function flavor, which `mlflow models serve` and
`mlflow.pyfunc.load_model` use: mlflow.diffusers' own knows neither seeds nor scales.
"""

import io
import logging
import math
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import mlflow.diffusers
import pandas as pd
import torch
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT as _IN_SERVER
from mlflow.environment_variables import MLFLOW_DEFAULT_PREDICTION_DEVICE, MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.protos.databricks_pb2 import CANCELLED, INTERNAL_ERROR, RESOURCE_EXHAUSTED, TEMPORARILY_UNAVAILABLE
from pydantic import ValidationError

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.provenance import file_digest
from b4m_pipeline.diffusion.families import base_model_id, load_family
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.diffusion.sampling import (
    GenerationError,
    ImageRequest,
    describe,
    draw,
    origin,
    png_info,
    require_base,
    settings_of,
)
from b4m_pipeline.diffusion.wardrobe import Wardrobe
from b4m_pipeline.method.adapter import BASE_DETAILS, URI_KEY, WEIGHTS_NAME, Adapter, AdapterError
from b4m_pipeline.method.combine import scale_halves
from b4m_pipeline.method.files import load_adapter
from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.registry.adapters import DIGEST_KEY, RegistrationError, fetch_adapter, find_version, logged_weights
from b4m_pipeline.registry.bounds import (
    MAX_ENLARGEMENT,
    Answer,
    PredictParams,
    ServingError,
    first_of,
    predict_signature,
    prompts_of,
    refused,
    require_work,
)
from b4m_pipeline.registry.turns import LeftError, Line, LineFullError, TimeUpError

__all__ = ["PredictParams", "ServedAdapter", "ServingError", "client_left", "predict_signature", "save_model"]

logger = logging.getLogger(__name__)

BATCH_SIZE = 4
"""Prompts that are drawn at once, at the trained size or smaller; fewer of larger ones."""
MAX_WAITING = 4
"""Requests that wait while another one is drawn."""
OTHERS = "B4M_SERVE_OTHERS"
"""Environment variable; "1": requests may name other adapters of the registry."""
_OF_THE_TIME = 0.95  # so that the answer comes before MLflow's own
_MODULE = "b4m_pipeline.serving"


client_left: ContextVar[Callable[[], bool]] = ContextVar("client_left", default=lambda: False)
"""Whether the client of the request at hand is gone; a server that knows sets it."""


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


def patience() -> tuple[float, float]:
    """Seconds that a request may take, and how many may wait; no bounds but in a server, where others want their turn."""
    if not _IN_SERVER.get():
        return math.inf, math.inf
    return MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get() * _OF_THE_TIME, MAX_WAITING


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
        self.wardrobe = Wardrobe(self.pipeline)
        self.wardrobe.wear("", lambda: adapter)
        self.line = Line()

    def get_raw_model(self):
        """The diffusers pipeline, with the adapter and the scales of the request before."""
        return self.pipeline

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> list[bytes]:
        """Draw the column `prompt` (or the only one) -> a PNG for each row; row i has the seed `seed` + i.

        Requests take turns, a batch each. params: see `PredictParams`. Raises Answer, which MLflow's server answers with: 400
        for what cannot be drawn or is too much, 429 if the GPU's memory does not suffice; in a server also 429 if too many
        are waiting, and 503 if its time for a request is over: then drawing stops between two steps.
        """
        prompts, wanted = prompts_of(data), self.check(params or {})
        require_work(len(prompts), wanted, self.resolution)
        version = _version_of(wanted.adapter)
        requests = [ImageRequest(prompt, wanted.seed + index) for index, prompt in enumerate(prompts)]
        area = wanted.height * wanted.width / self.resolution**2
        settings = GenerateParams(
            adapter=self.adapter.metadata["name"],
            prompts=prompts,
            negative_prompt=wanted.negative_prompt or None,
            steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            batch_size=max(1, int(BATCH_SIZE / max(1.0, area))),
            content_scale=wanted.content_scale,
            style_scale=wanted.style_scale,
        )
        pictures: list[bytes] = []
        seconds, most_waiting = patience()
        try:
            with self.line.place(seconds, most_waiting, client_left.get()) as place:
                for start in range(0, len(requests), settings.batch_size):
                    with self.line.turn(place):
                        batch = requests[start : start + settings.batch_size]
                        pictures += self._draw(batch, settings, version, wanted, place.require_time)
            return pictures
        except Answer:
            raise
        except LineFullError as error:
            raise Answer(str(error), RESOURCE_EXHAUSTED, error.retry_after) from error
        except TimeUpError as error:
            message = (
                f"{len(pictures)} of {len(requests)} pictures were drawn in the {seconds:.0f} s that a request has, so it was "
                "stopped: ask for fewer prompts, smaller pictures or fewer steps, or when less is going on"
            )
            raise Answer(message, TEMPORARILY_UNAVAILABLE, self.line.retry_after) from error
        except LeftError as error:
            raise Answer(str(error), CANCELLED) from error
        except torch.OutOfMemoryError as error:
            message = "The GPU's memory is full: ask for fewer prompts at once, or for smaller pictures"
            raise Answer(message, RESOURCE_EXHAUSTED) from error
        except Exception as error:  # a defect, whatever it is: MLflow would call it the client's (400) and send the traceback
            logger.exception("A request could not be answered")
            message = f"The pictures could not be drawn ({type(error).__name__}); the server's log says more"
            raise Answer(message, INTERNAL_ERROR) from error

    def check(self, params: dict[str, Any]) -> PredictParams:
        """The params with defaults in the place of None. Raises Answer (400)."""
        size = {"height": self.resolution, "width": self.resolution}
        plain = {key: getattr(value, "item", lambda value=value: value)() for key, value in params.items() if value is not None}
        if switches := [name for name, value in plain.items() if isinstance(value, bool)]:  # which count as 0 and 1 in Python
            raise refused(f"{switches[0]}: input should be no boolean, got {plain[switches[0]]}")
        try:
            wanted = PredictParams(**size | plain)
        except ValidationError as error:
            raise refused(first_of(error)) from error
        most = MAX_ENLARGEMENT * self.resolution
        for name in ("height", "width"):
            if (given := getattr(wanted, name)) > most:
                raise refused(
                    f"{name} must be at most {most}, {MAX_ENLARGEMENT} times what the adapter was trained at, got {given}"
                )
            if given % (multiple := self.family.side_multiple()):
                raise refused(f"{name} must be a multiple of {multiple} with this base model, got {given}")
        if wanted.adapter and os.environ.get(OTHERS) != "1":
            raise refused(f"adapter: this server draws with {self.adapter.metadata['name']} alone (kedro serve --others)")
        if wanted.negative_prompt and not self.family.negative_prompts:
            raise refused("negative_prompt: this base model takes none")
        return wanted

    def _draw(
        self,
        requests: list[ImageRequest],
        settings: GenerateParams,
        version: str,
        wanted: PredictParams,
        require_time: Callable[[], None],
    ) -> list[bytes]:
        """One batch as PNGs. version: of another adapter, "" for the one that is served. Raises Answer (400) for an adapter
        that cannot be drawn with."""

        def fetch() -> Adapter:
            other = fetch_adapter(version) if version else self.adapter
            require_base(other, self.base)
            return other

        try:
            worn = self.wardrobe.wear(version, fetch, wanted.content_scale, wanted.style_scale)
        except (RegistrationError, AdapterError, GenerationError, FrameMismatchError) as error:
            raise refused(f"adapter: {_one_line(error)}") from error
        about = origin(worn, self.base, settings)
        size = settings_of(settings, wanted.height, wanted.width)
        drawn = draw(self.pipeline, requests, between_steps=require_time, **size)
        return [_png(describe(image, request, about)) for request, image in drawn]


def _version_of(source: str) -> str:
    """The version that a source is now, "models:/NAME/VERSION"; "" for none. Raises Answer (400)."""
    if not source:
        return ""
    try:
        found = find_version(source)
    except RegistrationError as error:
        raise refused(f"adapter: {_one_line(error)}") from error
    return f"models:/{found.name}/{found.version}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _png(picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=png_info(picture))
    return buffer.getvalue()


def _weights_folder(model: Model) -> str:
    return model.flavors[mlflow.diffusers.FLAVOR_NAME]["adapter_weights"]
