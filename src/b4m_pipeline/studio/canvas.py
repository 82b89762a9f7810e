"""Pictures drawn one after another by a thread of their own, with the base model in memory between requests.

Each picture is what `kedro run --pipelines=generate` draws for the same adapter, prompt, seed and settings, one at a time.
"""

import gc
import logging
import queue
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar, cast

from PIL import Image

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.diffusion.families import base_model_id, load_family
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.diffusion.sampling import ImageRequest, describe, draw, origin, require_base, settings_of
from b4m_pipeline.diffusion.wardrobe import Wardrobe
from b4m_pipeline.library.compose import compose
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.registry.adapters import fetch_adapter
from b4m_pipeline.studio.asked import PAIRED, DrawingRequest, Way

logger = logging.getLogger(__name__)

Explain = Callable[[BaseException], str | None]
"""A user's error in a line; None for a defect."""
Result = TypeVar("Result")
_KEPT_DRAWINGS = 30
_KEPT_ADAPTERS = 12
_WAITING = 8
_PATIENCE = 20  # seconds for the picture under way


class CanvasError(ValueError):
    """A drawing that is not known any more, or one too many."""


@dataclass(frozen=True)
class Cell:
    """One picture to be drawn."""

    way: Way
    seed: int
    content: float
    style: float


@dataclass
class Picture:
    """A picture, and what it was made by."""

    cell: Cell
    image: Image.Image = field(repr=False)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass
class Drawing:
    """A request, and the pictures so far. state: waiting, loading, drawing, done, stopped or failed, with a message."""

    request: DrawingRequest
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "waiting"
    message: str = ""
    pictures: list[Picture] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def ended(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    def about(self) -> dict[str, Any]:
        """For the page."""
        shown = [vars(picture.cell) | {"id": picture.id} for picture in self.pictures]
        return {"id": self.id, "state": self.state, "message": self.message, "total": self.request.number, "pictures": shown}


def cells(request: DrawingRequest) -> list[Cell]:
    """The pictures of a request, in order: a grid row by row, otherwise way by way."""
    if request.grid:
        return [Cell(request.ways[0], request.seed, content, style) for style in request.grid for content in request.grid]
    strengths = request.content_strength, request.style_strength
    return [Cell(way, request.seed + index, *strengths) for way in request.ways for index in range(request.images)]


class Canvas:
    """Draws; one for the whole server, as a picture keeps the device busy as it is."""

    def __init__(self, parameters: dict[str, Any], explain: Explain, finished: Callable[[Drawing], None] | None = None):
        """parameters: of the project, typed; explain: how a user's error is said; finished: called after each drawing."""
        self.base_model: BaseModelParams = parameters["base_model"]
        self.parameters = parameters
        self.device = pick_device(parameters["generate"].device)
        self._explain, self._finished = explain, finished
        self._drawings: OrderedDict[str, Drawing] = OrderedDict()
        self._adapters: OrderedDict[tuple, Adapter] = OrderedDict()
        self._wardrobe: Wardrobe | None = None
        self._queue: queue.Queue[Drawing] = queue.Queue()
        self._lock = threading.Lock()  # of the pipeline
        threading.Thread(target=self._work, daemon=True, name="canvas").start()

    @cached_property
    def base(self) -> str:
        """See `base_model_id`."""
        return base_model_id(self.base_model)

    def submit(self, request: DrawingRequest) -> Drawing:
        """Have it drawn after those that wait. Raises CanvasError if too many do."""
        if sum(not drawing.ended for drawing in list(self._drawings.values())) >= _WAITING:
            raise CanvasError(f"{_WAITING} drawings wait already: let them come, or stop some")
        drawing = Drawing(request)
        self._drawings[drawing.id] = drawing
        ended = [id for id, known in self._drawings.items() if known.ended]
        for id in ended[: max(0, len(self._drawings) - _KEPT_DRAWINGS)]:
            del self._drawings[id]
        self._queue.put(drawing)
        return drawing

    def drawing(self, id: str) -> Drawing:
        """Raises CanvasError if it is not kept any more."""
        if id not in self._drawings:
            raise CanvasError("This drawing is not kept any more: draw it again")
        return self._drawings[id]

    def picture(self, id: str) -> tuple[Drawing, Picture]:
        """A picture by its id, and what it is of. Raises CanvasError."""
        for drawing in list(self._drawings.values()):
            for picture in drawing.pictures:
                if picture.id == id:
                    return drawing, picture
        raise CanvasError("This picture is not kept any more: draw it again")

    def alone(self, work: Callable[[], Result]) -> Result:
        """Do something that draws by itself: nothing else is drawn meanwhile, and the memory is free."""
        with self._lock:
            self._drop()
            return work()

    def release(self) -> None:
        """Give the memory of the base model back, for a training; what is drawn or waits is stopped, unless it is measured."""
        for drawing in list(self._drawings.values()):
            drawing.stop.set()
        if self._lock.acquire(timeout=_PATIENCE):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _drop(self) -> None:
        import torch

        self._wardrobe = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _work(self) -> None:
        while True:
            drawing = self._queue.get()
            if drawing.stop.is_set():
                drawing.state = "stopped"
                continue
            try:
                with self._lock:
                    for picture in self._draw(drawing):
                        drawing.pictures.append(picture)
                drawing.state = "stopped" if drawing.stop.is_set() else "done"
                if self._finished and drawing.state == "done":
                    self._finished(drawing)
            except Exception as error:  # the thread must live on, whatever one request meets
                drawing.message = self.said(error)
                if isinstance(error, RuntimeError):  # such as a full memory
                    with self._lock:
                        self._drop()
                drawing.state = "failed"

    def said(self, error: Exception) -> str:
        """An error in a line; a defect's traceback goes to the log."""
        if (told := self._explain(error)) is not None:
            return told
        logger.exception("A picture could not be drawn")
        return f"The picture could not be drawn ({type(error).__name__}); the terminal says more"

    def _draw(self, drawing: Drawing) -> Iterator[Picture]:
        request = drawing.request
        drawing.state = "loading"
        for cell in cells(request):
            if drawing.stop.is_set():
                return
            params = self.settings(request, cell)
            adapter = self.adapter(request, cell)
            require_base(adapter, self.base)
            wardrobe = self._wardrobe = self._wardrobe or self._load()
            own = partial(self.adapter, request, cell)
            wardrobe.wear(self._key(request, cell), own, params.content_scale, params.style_scale)
            drawing.state = "drawing"
            asked = [ImageRequest(request.prompt, cell.seed)]
            for image_request, image in draw(wardrobe.pipeline, asked, **settings_of(params, self.base_model.resolution)):
                yield Picture(cell, describe(image, image_request, origin(adapter, self.base, params)))

    def _load(self) -> Wardrobe:
        pipeline = load_family(self.base_model).load_pipeline(self.device)
        pipeline.set_progress_bar_config(disable=True)
        return Wardrobe(pipeline)

    def settings(self, request: DrawingRequest, cell: Cell) -> GenerateParams:
        """As `generate` takes them. A merge is scaled by its weights instead, so its strengths are 1."""
        scaled = cell.way in ("halves", "make", "alone")
        return GenerateParams(
            adapter="composed" if cell.way in PAIRED else request.adapter,
            content_scale=cell.content if scaled else 1.0,
            style_scale=cell.style if scaled else 1.0,
            prompts=[request.prompt],
            negative_prompt=request.negative_prompt or None,
            images_per_prompt=1,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            batch_size=1,
            device=self.parameters["generate"].device,
        )

    def composition(self, request: DrawingRequest, cell: Cell) -> ComposeParams:
        """As `compose` takes it. Of halves the weights are 1: their strengths are those of `generate`."""
        own = self.parameters["compose"]
        merge = own.merge
        if cell.way != "halves":
            merge = merge.model_copy(update={"content_weight": cell.content, "style_weight": cell.style})
        return ComposeParams(content=request.content, style=request.style, methods=[cell.way], merge=merge)

    def adapter(self, request: DrawingRequest, cell: Cell) -> Adapter:
        """What the cell is drawn with, before strengths. Raises as `compose` and `fetch_adapter` do."""
        key = self._key(request, cell)
        if key not in self._adapters:
            self._adapters[key] = self._composed(request, cell)
            while len(self._adapters) > _KEPT_ADAPTERS:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(key)
        return self._adapters[key]

    def _composed(self, request: DrawingRequest, cell: Cell) -> Adapter:
        if cell.way not in PAIRED:
            return fetch_adapter(cast(str, request.adapter))
        p = self.parameters
        params = self.composition(request, cell)
        return compose(params, self.base_model, p["frame"].content_side, p["make"], p["seed"])[2][cell.way]

    def _key(self, request: DrawingRequest, cell: Cell) -> tuple:
        if cell.way not in PAIRED:
            return (request.adapter,)
        weights = () if cell.way == "halves" else (cell.content, cell.style)
        return (request.content, request.style, cell.way, *weights)
