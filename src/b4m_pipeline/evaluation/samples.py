"""Images that are drawn to be measured: by which system, for which prompt, with which seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.words import file_words
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import ImageRequest, WayToDraw, draw, put_on, settings_of
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.method.adapter import Adapter

BASE, CONTENT, STYLE, JOINED, MADE = "base", "content alone", "style alone", "halves joined", "made"
KNOWN = "known"
"""Kind of the base model's drawings of what the style's pictures show: they tell what the style allows."""
_KNOWN_DRAWINGS = 2  # of a thing: how alike they are is part of the measure


@dataclass(frozen=True)
class SampleRequest(ImageRequest):
    """An image of an evaluation. system: what draws it; kind: content, style, known (see `KNOWN`), composition (the first
    prompt), recontext, recontext_2, ... (further ones); plain: the prompt in plain words, for a CLIP model, which knows no new
    words."""

    system: str
    kind: str
    plain: str

    @property
    def key(self) -> str:
        """File name without its ending."""
        return f"{self.system.replace(' ', '-')}/{self.kind}-{file_words(self.prompt)}-{self.seed}"

    def row(self) -> dict[str, str | int]:
        """Of the table of samples."""
        return {"picture": self.key, **asdict(self)}


def known_requests(things: Sequence[str | None], number: int, seed: int) -> list[SampleRequest]:
    """Drawings by the base model of the first `number` things that the style's pictures show (None: that is not said)."""
    named = list(dict.fromkeys(thing for thing in things if thing))[:number]
    return [SampleRequest(thing, seed + index, BASE, KNOWN, thing) for thing in named for index in range(_KNOWN_DRAWINGS)]


def draw_samples(
    requests: list[SampleRequest],
    adapters: Mapping[str, Adapter | WayToDraw | None],
    base_model: BaseModelParams,
    params: EvaluationParams,
    pipeline: DiffusionPipeline | None = None,
) -> dict[str, Image.Image]:
    """Draw every request with its system's adapter (None: the base model alone) -> RGB images by the requests' keys. pipeline:
    the base model's, where it is loaded already; whoever has it shows the progress.

    An image is what `pipeline(prompt, num_inference_steps=steps, guidance_scale=guidance_scale,
    generator=torch.Generator().manual_seed(seed))` gives, to rounding: its noise depends on its seed alone.
    """
    lent = pipeline is not None
    pipeline = pipeline or load_family(base_model).load_pipeline(pick_device(params.device))
    images = {}
    with tqdm(total=len(requests), desc="drawing", mininterval=1.0, disable=lent) as bar:
        for system, adapter in adapters.items():
            pipeline.unload_lora_weights()
            if adapter is not None:
                put_on(pipeline, adapter)
            own = [request for request in requests if request.system == system]
            for request, image in draw(pipeline, own, **settings_of(params, base_model.resolution)):
                images[request.key] = image
                bar.update()
    return images
