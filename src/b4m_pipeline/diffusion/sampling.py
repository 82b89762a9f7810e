"""Drawing: the one loop behind evaluation, generation, previews and serving, and images for prompts of one's own."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.progress import progress
from b4m_pipeline.common.texts import text_of
from b4m_pipeline.common.words import file_words
from b4m_pipeline.diffusion.families import Family, base_model_id, denoiser_of, family_of, load_family
from b4m_pipeline.diffusion.held import held, skipping
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.method.adapter import PEFT_NAME, URI_KEY, Adapter, example_prompt
from b4m_pipeline.method.combine import with_strengths
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import frame_of

logger = logging.getLogger(__name__)

INFO_KEY = "b4m"
"""Name of the PNG text chunk that holds an image's origin, as JSON."""


class GenerationError(ValueError):
    """Prompts or an adapter that cannot be drawn with."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw. Its noise depends on its seed alone, not on the batch that it is drawn in."""

    prompt: str
    seed: int


Request = TypeVar("Request", bound=ImageRequest)


def draw(
    pipeline: DiffusionPipeline,
    requests: Sequence[Request],
    *,
    steps: int,
    guidance_scale: float,
    batch_size: int,
    size: tuple[int, int],
    negative_prompt: str | None = None,
    encoded: dict[str, Any] | None = None,
    starts: Sequence[torch.Tensor] | None = None,
    strength: float = 1.0,
    between_steps: Callable[[], None] | None = None,
) -> Iterator[tuple[Request, Image.Image]]:
    """Draw the requests in batches, as RGB images of `size` = (height, width) pixels.

    encoded: what the pipeline takes in place of prompts (see `Family.encode_guided`), a row a request; starts: a picture's
    latents (C, h, w) for each request (see `Family.encode_pictures`). The last `strength` of the steps then begin with this
    picture under noise, as in SDEdit (Meng et al. 2022, arXiv 2108.01073). between_steps: called after each denoising step;
    what it raises ends the drawing. Raises GenerationError for a negative prompt where the base model's pipeline takes none."""
    height, width = size
    family, denoiser = family_of(pipeline), denoiser_of(pipeline)
    if negative_prompt and not family.negative_prompts:
        raise GenerationError(
            f"negative_prompt is {negative_prompt!r}, and {type(pipeline).__name__} takes none: set it to null"
        )
    if not encoded:
        _warn_of_cut(pipeline, [request.prompt for request in requests] + [negative_prompt or ""])
    skipped = steps - max(1, round(steps * strength)) if starts else 0
    own = pipeline.scheduler
    if skipped and any(hasattr(own, past) for past in ("model_outputs", "ets")):  # it would look back at what is replaced
        pipeline.scheduler = DDIMScheduler.from_config(own.config, clip_sample=False)
    try:
        for first in range(0, len(requests), batch_size):
            part = slice(first, first + batch_size)
            batch = requests[part]
            inputs: dict[str, Any] = {"prompt": [request.prompt for request in batch]}
            if encoded:
                inputs = {key: value[part] for key, value in encoded.items()}
            elif negative := negative_prompt or family.empty_prompt:
                inputs["negative_prompt"] = [negative] * len(batch)
            begin = _Begin(family, torch.stack([*starts[part]]), batch, skipped) if starts and skipped else None
            if begin or between_steps:
                inputs["callback_on_step_end"] = _after_step(begin, between_steps)
            unused = skipping(denoiser, begin.is_ahead) if begin else nullcontext()
            with held(denoiser, family.prompt_layers(denoiser)), unused:
                images = pipeline(
                    **inputs,
                    num_inference_steps=steps,
                    **family.guidance(guidance_scale),
                    height=height,
                    width=width,
                    generator=[torch.Generator().manual_seed(request.seed) for request in batch],
                ).images
            yield from zip(batch, images, strict=True)
    finally:
        pipeline.scheduler = own


Change = Callable[[DiffusionPipeline, int, dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Pipeline, step and its tensors -> which of them change."""


def _after_step(change: Change | None, between_steps: Callable[[], None] | None) -> Callable[..., dict[str, torch.Tensor]]:
    """Both as diffusers calls it after each step."""

    def after_step(
        pipeline: DiffusionPipeline, step: int, timestep: Any, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        if between_steps:
            between_steps()
        return change(pipeline, step, tensors) if change else {}

    return after_step


class _Begin:
    """Puts latents (B, C, h, w), noised as far as the next step expects, in the place of what the first steps have made. What
    the denoiser says in these steps is lost, but this way is the same for all pipelines."""

    def __init__(self, family: type[Family], latents: torch.Tensor, requests: Sequence[ImageRequest], skipped: int):
        self.family, self.latents, self.requests, self.skipped, self.done = family, latents, requests, skipped, 0

    def is_ahead(self) -> bool:
        """Whether the step that is computed now is one of those."""
        return self.done < self.skipped

    def __call__(self, pipeline: DiffusionPipeline, step: int, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.done = step + 1
        if self.done != self.skipped:
            return {}
        seeds = [request.seed for request in self.requests]
        drawn = [torch.randn(self.latents.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        scheduler = pipeline.scheduler
        noise, at = torch.stack(drawn), scheduler.timesteps[[self.skipped] * len(seeds)].cpu()
        flows = hasattr(scheduler, "scale_noise")
        noisy = scheduler.scale_noise(self.latents, at, noise) if flows else scheduler.add_noise(self.latents, noise, at)
        return {"latents": self.family.in_loop(noisy).to(given["latents"])}


def _warn_of_cut(pipeline: DiffusionPipeline, prompts: list[str]) -> None:
    family = family_of(pipeline)
    tokenizer = getattr(pipeline, family.reader)
    limit = family.token_limit(tokenizer)
    for prompt in dict.fromkeys(prompts):
        if family.prompt_tokens(tokenizer, prompt) > limit:
            logger.warning("The text encoder reads %d tokens, so the end of this prompt does not count: %s", limit, prompt)


class WayToDraw(Protocol):
    """What a pipeline can draw with but which is no single adapter, such as one that changes from step to step."""

    def put_on(self, pipeline: DiffusionPipeline) -> None:
        """Prepare a pipeline without adapters. Must do no harm once `unload_lora_weights` was called."""


def put_on(pipeline: DiffusionPipeline, adapter: Adapter | WayToDraw, name: str = PEFT_NAME) -> None:
    """Load the adapter into the pipeline from a file, as any user of diffusers does; name: what PEFT calls it."""
    if not isinstance(adapter, Adapter):
        return adapter.put_on(pipeline)
    with tempfile.TemporaryDirectory() as folder:
        pipeline.load_lora_weights(save_adapter(adapter, Path(folder)).parent, adapter_name=name)


def base_of(adapter: Adapter) -> str | None:
    """Which base model an adapter is of (see `base_model_id`), None if it does not say."""
    return json.loads(adapter.metadata["frame_config"]).get("base_model")


def require_base(adapter: Adapter, base: str) -> None:
    """Raise GenerationError if the base model `base` (see `base_model_id`) has other weights than the adapter's,
    FrameMismatchError if the adapter does not say which it is of."""
    own = base_of(adapter) or frame_of(adapter).base_model
    if own.rsplit("@", 1)[-1] != base.rsplit("@", 1)[-1]:  # a folder may have another name by now
        raise GenerationError(f"{adapter.metadata['name']} is an adapter of the base model {own}, not of {base}")


@dataclass(frozen=True)
class PromptRequest(ImageRequest):
    """An image for one of the user's prompts. number: of the prompt, from 0."""

    number: int

    @property
    def key(self) -> str:
        """File name without its ending."""
        return f"{self.number:03d}-{file_words(self.prompt)}-{self.seed}"


def read_prompts(params: GenerateParams, adapter: Adapter | None) -> list[str]:
    """The prompts of the parameters, then those of the file, without empty lines and lines that start with #; the adapter's
    own if neither is named. Raises GenerationError if the file cannot be read or there is nothing."""
    prompts = list(params.prompts or [])
    if params.prompts is None and not params.prompts_file and adapter is not None:
        prompts = [example_prompt(adapter.metadata) or ""]
    if params.prompts_file:
        path = Path(params.prompts_file).expanduser()
        try:
            lines = text_of(path).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise GenerationError(f"generate.prompts_file: {path} cannot be read as UTF-8 text: {error}") from error
        prompts += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise GenerationError("generate.prompts: there is no prompt, or an empty one")
    return prompts


def generate(adapter: Adapter | None, base_model: BaseModelParams, params: GenerateParams, seed: int) -> dict[str, Image.Image]:
    """Draw every prompt with every seed -> RGB images by file name. What each was made with is in its `info["b4m"]`, and in
    the PNG that `png_info` helps to write. Raises GenerationError if the adapter is another base model's."""
    prompts, device, base = read_prompts(params, adapter), pick_device(params.device), base_model_id(base_model)
    if adapter is not None:
        require_base(adapter, base)
        adapter = with_strengths(adapter, params.content_scale, params.style_scale)
    pipeline = load_family(base_model).load_pipeline(device)
    if adapter is not None:
        put_on(pipeline, adapter)
    numbered = [(number, prompt, index) for number, prompt in enumerate(prompts) for index in range(params.images_per_prompt)]
    requests = [PromptRequest(prompt, seed + index, number) for number, prompt, index in numbered]
    about, drawn = origin(adapter, base, params), draw(pipeline, requests, **settings_of(params, base_model.resolution))
    drawn = progress(drawn, "drawing", len(requests), params.steps)
    return {request.key: describe(image, request, about) for request, image in drawn}


def settings_of(params: BaseModel, height: int, width: int | None = None) -> dict[str, Any]:
    """Arguments of `draw` from parameters that have them; height, width in pixels, a square unless both are given."""
    own = params.model_dump(include={"steps", "guidance_scale", "batch_size", "negative_prompt"})
    return own | {"size": (height, width or height)}


def origin(adapter: Adapter | None, base: str, params: GenerateParams) -> dict[str, Any]:
    """What images are made with, prompt and seed apart."""
    about = {"base_model": base, "steps": params.steps, "guidance_scale": params.guidance_scale}
    about |= {"negative_prompt": params.negative_prompt} if params.negative_prompt else {}
    if adapter is not None:
        about |= {"adapter": adapter.metadata.get(URI_KEY) or adapter.metadata["name"], "frame": adapter.metadata["frame"]}
        about |= {"content_scale": params.content_scale, "style_scale": params.style_scale}
    return about


def describe(image: Image.Image, request: ImageRequest, about: dict[str, Any]) -> Image.Image:
    """The image, which now carries `about`, its prompt and its seed."""
    image.info[INFO_KEY] = json.dumps({"prompt": request.prompt, "seed": request.seed} | about, sort_keys=True)
    return image


def png_info(image: Image.Image) -> PngInfo:
    """The text chunk to save an image with, so that its origin stays with it."""
    info = PngInfo()
    if INFO_KEY in image.info:
        info.add_itxt(INFO_KEY, image.info[INFO_KEY])
    return info
