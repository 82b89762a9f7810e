"""Put the embedded base together in diffusers' format, and judge it on what it was and was not shown."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPTokenizer

from b4m_pipeline.base_model.corpus import Drawings
from b4m_pipeline.base_model.denoiser import Denoiser, make_scheduler
from b4m_pipeline.base_model.text import standard_caption
from b4m_pipeline.base_model.vae import encode_means, to_tensor
from b4m_pipeline.seeding import numpy_generator

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


def save_base(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write fp16 safetensors that are loaded as float32; the pipeline in memory goes back to float32."""
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    pipeline.to(torch.float32)
    for encoder in ("text_encoder", "text_encoder_2"):
        load_as_float32(folder / encoder / "config.json")


def load_as_float32(config: Path) -> None:
    """transformers loads weights in the type that their configuration names, diffusers in float32: a pipeline loaded without
    a type would be half of each."""
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


@torch.no_grad()
def draw(
    pipeline: StableDiffusionXLPipeline, captions: list[str], seed: int, batch: int = 24, guidance: float = 3.0
) -> list[Image.Image]:
    """One picture a caption, 20 steps; the i-th from the generator seeded by seed + i."""
    pictures = []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(part))]
        output = pipeline(part, num_inference_steps=20, guidance_scale=guidance, generator=generators)
        pictures += output.images
    return pictures


def judge(pipeline: StableDiffusionXLPipeline, drawings: Drawings, per_split: int, seed: int) -> pd.DataFrame:
    """Draw `per_split` pairs of each split and look for each picture among that hand's drawings by latent distance.

    Columns: split, pairs, top1, top5 (is the prompted content the nearest, or one of five, among the hand's contents?) and
    style_top1 (is the nearest drawing of that content, among all hands, by the prompted hand?).
    """
    table = drawings.table
    latents = encode_means(pipeline.vae, to_tensor(drawings.on())).flatten(1)
    known = table.split.isin(["train", "unseen_pair"]).to_numpy()
    rows = []
    for split in ("train", "unseen_pair"):
        candidates = np.flatnonzero((table.split == split).to_numpy())
        if not len(candidates):
            continue
        rng = numpy_generator(seed, "judge", split)
        chosen = rng.choice(candidates, min(per_split, len(candidates)), replace=False)
        captions = [standard_caption(table.content[i], table["style"][i]) for i in chosen]
        pictures = np.stack([np.asarray(picture) for picture in draw(pipeline, captions, seed)])
        drawn = encode_means(pipeline.vae, to_tensor(pictures)).flatten(1)
        ranks, style_hits = [], []
        for index, row in enumerate(chosen):
            distance = (latents - drawn[index]).square().sum(1).numpy()
            same_hand = known & (table.hand == table.hand[row]).to_numpy()
            ranks.append(int((distance[same_hand] < distance[row]).sum()))
            same_content = known & (table.content == table.content[row]).to_numpy()
            nearest = np.flatnonzero(same_content)[distance[same_content].argmin()]
            style_hits.append(table.hand[nearest] == table.hand[row])
        ranks_array = np.array(ranks)
        top1, top5 = float((ranks_array == 0).mean()), float((ranks_array < 5).mean())
        rows.append((split, len(chosen), top1, top5, float(np.mean(style_hits))))
    return pd.DataFrame(rows, columns=["split", "pairs", "top1", "top5", "style_top1"])


def sample_sheet(
    pipeline: StableDiffusionXLPipeline, drawings: Drawings, contents: list[str], hands: list[str], seed: int
) -> Image.Image:
    """Contents (rows) by hands (columns): above what the base draws, below the true drawing."""
    size = drawings.rgba.shape[1]
    table, white = drawings.table, drawings.on()
    words = dict(zip(table.hand, table["style"], strict=True))
    captions = [standard_caption(content, words[hand]) for content in contents for hand in hands]
    pictures = draw(pipeline, captions, seed)
    sheet = Image.new("RGB", (len(hands) * size, 2 * len(contents) * size), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, len(hands))
        sheet.paste(picture, (column * size, 2 * row * size))
        true = np.flatnonzero((table.content == contents[row]) & (table.hand == hands[column]))
        if len(true):
            sheet.paste(Image.fromarray(white[true[0]]), (column * size, (2 * row + 1) * size))
    return sheet
