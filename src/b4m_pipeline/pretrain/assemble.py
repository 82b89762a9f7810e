"""Put the embedded base together in diffusers' format, and draw with it."""

import json
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPTokenizer

from b4m_pipeline.diffusion import sampling
from b4m_pipeline.diffusion.sampling import ImageRequest
from b4m_pipeline.pretrain.corpus import CorpusError
from b4m_pipeline.pretrain.denoiser import Denoiser, Start, make_scheduler

logger = logging.getLogger(__name__)


def assemble(vae: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    """The parts as a stock SDXL pipeline. A missing negative prompt is all zeros, as in training."""
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=denoiser.encoders[0],
        text_encoder_2=denoiser.encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=denoiser.unet,
        scheduler=make_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


HISTORY_NAME = "training.json"
"""In a base's folder: the trainings it is made of, the first from random weights, each going on from the one before."""


def read_history(folder: Path) -> list[dict]:
    """The trainings that a base is made of. Raises CorpusError if there is no base, or no record with it."""
    path = folder / HISTORY_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"No base to go on from in {folder} ({error}): run the pretrain pipeline first") from error


def write_history(folder: Path, history: list[dict]) -> None:
    """Put the record beside the weights."""
    (folder / HISTORY_NAME).write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


def load_start(folder: Path) -> tuple[Start, AutoencoderKL, CLIPTokenizer, list[dict]]:
    """A base to go on from: its denoiser with text encoders and what they know, its VAE, its tokenizer, its history."""
    history = read_history(folder)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=True)
    encoder = pipeline.text_encoder_2
    encoder.text_projection.weight.requires_grad_(False)  # the identity, see make_text_encoders
    contents = {content for training in history for content in training["contents"]}
    start = Start(Denoiser(pipeline.unet, (pipeline.text_encoder, encoder)), contents)
    return start, pipeline.vae, pipeline.tokenizer, history


def save_base(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write fp16 safetensors that are loaded as float32; the pipeline in memory goes back to float32."""
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    pipeline.to(torch.float32)
    for encoder in ("text_encoder", "text_encoder_2"):
        load_as_float32(folder / encoder / "config.json")


def load_as_float32(config: Path) -> None:
    """transformers loads weights in the type that their configuration names, diffusers in float32: a pipeline loaded without
    a type would be half of each."""
    settings = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def draw(
    pipeline: StableDiffusionXLPipeline, captions: list[str], seed: int, batch: int = 24, guidance: float = 3.0
) -> list[Image.Image]:
    """One picture a caption, 20 steps; the i-th from the generator seeded by seed + i."""
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    requests = [ImageRequest(caption, seed + index) for index, caption in enumerate(captions)]
    drawn = sampling.draw(pipeline, requests, steps=20, guidance_scale=guidance, batch_size=batch, size=(side, side))
    return [image for _, image in drawn]
