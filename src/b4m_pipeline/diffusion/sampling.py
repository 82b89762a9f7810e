"""Pictures for prompts of one's own, each with all that is needed to draw it again."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from b4m_pipeline.common.config import BaseModelParams, GenerateParams
from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.diffusion.families import base_model_id, load_family
from b4m_pipeline.method import plp
from b4m_pipeline.method.adapter import URI_KEY, Adapter, save_adapter

INFO_KEY = "b4m"
"""Name of the PNG text chunk that holds a picture's origin, as JSON."""


class GenerationError(ValueError):
    """Prompts or an adapter that cannot be drawn with."""


@dataclass(frozen=True)
class Wish:
    """One picture to draw."""

    prompt: str
    seed: int
    number: int
    """Of the prompt, from 0."""

    @property
    def key(self) -> str:
        """File name without its ending."""
        words = "-".join("".join(c if c.isalnum() else " " for c in self.prompt).split())[:80]
        return f"{self.number:03d}-{words}-{self.seed}"


def read_prompts(params: GenerateParams) -> list[str]:
    """The prompts of the parameters, then those of the file, without empty lines and lines that start with #. Raises
    GenerationError if the file cannot be read or there is nothing."""
    prompts = list(params.prompts)
    if params.prompts_file:
        path = Path(params.prompts_file).expanduser()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise GenerationError(f"generate.prompts_file: {path} cannot be read as UTF-8 text: {error}") from error
        prompts += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise GenerationError("generate.prompts: there is no prompt, or an empty one")
    return prompts


def generate(adapter: Adapter | None, base_model: BaseModelParams, params: GenerateParams, seed: int) -> dict[str, Image.Image]:
    """Draw every prompt with every seed -> RGB pictures by file name. What each was made with is in its `info["b4m"]`, and in
    the PNG that `png_info` helps to write.

    The noise of a picture depends on its seed alone, not on batches. Raises GenerationError if the adapter is another base
    model's.
    """
    prompts, device, base = read_prompts(params), pick_device(params.device), base_model_id(base_model)
    if adapter is not None:
        require_base(adapter, base)
        adapter = plp.scale_halves(adapter, params.content_scale, params.style_scale)
    pipeline = load_family(base_model).load_pipeline(device)
    if adapter is not None:
        put_on(pipeline, adapter)
    wishes = [
        Wish(prompt, seed + index, number) for number, prompt in enumerate(prompts) for index in range(params.images_per_prompt)
    ]
    side = base_model.resolution
    drawn = draw(pipeline, wishes, params, (side, side), origin(adapter, base, params))
    return {wish.key: picture for wish, picture in tqdm(drawn, desc="drawing", total=len(wishes), mininterval=1.0)}


def require_base(adapter: Adapter, base: str) -> None:
    """Raise GenerationError if the base model `base` (see `base_model_id`) has other weights than the adapter's."""
    own = plp.frame_of(adapter).base_model
    if own.rsplit("@", 1)[-1] != base.rsplit("@", 1)[-1]:  # a folder may have another name by now
        raise GenerationError(f"{adapter.metadata['name']} is an adapter of the base model {own}, not of {base}")


def put_on(pipeline: DiffusionPipeline, adapter: Adapter) -> None:
    """Load the adapter into the pipeline from a file, as any user of diffusers does; PEFT knows it as plp.ADAPTER."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline.load_lora_weights(save_adapter(adapter, Path(folder)).parent, adapter_name=plp.ADAPTER)


def origin(adapter: Adapter | None, base: str, params: GenerateParams) -> dict[str, Any]:
    """What pictures are made with, prompt and seed apart."""
    about = {"base_model": base, "steps": params.steps, "guidance_scale": params.guidance_scale}
    about |= {"negative_prompt": params.negative_prompt} if params.negative_prompt else {}
    if adapter is not None:
        about |= {"adapter": adapter.metadata.get(URI_KEY) or adapter.metadata["name"], "frame": adapter.metadata["frame"]}
        about |= {"content_scale": params.content_scale, "style_scale": params.style_scale}
    return about


def draw(
    pipeline: DiffusionPipeline, wishes: Sequence[Wish], params: GenerateParams, size: tuple[int, int], about: dict[str, Any]
) -> Iterator[tuple[Wish, Image.Image]]:
    """Draw the wishes in batches of params.batch_size, as RGB pictures of `size` = (height, width) pixels that carry `about`,
    their prompt and their seed."""
    height, width = size
    for start in range(0, len(wishes), params.batch_size):
        batch = wishes[start : start + params.batch_size]
        drawn = pipeline(
            [wish.prompt for wish in batch],
            negative_prompt=[params.negative_prompt] * len(batch) if params.negative_prompt else None,
            num_inference_steps=params.steps,
            guidance_scale=params.guidance_scale,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(wish.seed) for wish in batch],
        ).images
        for wish, picture in zip(batch, drawn, strict=True):
            picture.info[INFO_KEY] = json.dumps({"prompt": wish.prompt, "seed": wish.seed} | about, sort_keys=True)
            yield wish, picture


def png_info(picture: Image.Image) -> PngInfo:
    """The text chunk to save a picture with, so that its origin stays with it."""
    info = PngInfo()
    if INFO_KEY in picture.info:
        info.add_itxt(INFO_KEY, picture.info[INFO_KEY])
    return info
