"""A small contrastive CLIP for drawings: the captioner's eyes and one of the judges.

Captions say the content, the style or both; a caption is positive for every picture in the batch that it is true of, so that
"an emoji in noto style" is not taught to reject half of noto.
"""

import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from b4m_pipeline.base_model.assemble import load_as_float32
from b4m_pipeline.base_model.corpus import Drawings, composite
from b4m_pipeline.base_model.params import ClipParams
from b4m_pipeline.base_model.text import standard_caption, tokenize
from b4m_pipeline.base_model.vae import to_tensor
from b4m_pipeline.captioning import article
from b4m_pipeline.checkpoints import load_checkpoint, save_checkpoint
from b4m_pipeline.devices import has_fast_bf16
from b4m_pipeline.seeding import numpy_generator

logger = logging.getLogger(__name__)


def content_prompt(content: str) -> str:
    """How a content alone is said, in training and when tags are looked for."""
    return f"{article(content)} {content} emoji"


def style_prompt(style: str) -> str:
    """How a style alone is said."""
    return f"an emoji in {style} style"


def make_clip(params: ClipParams, tokenizer: CLIPTokenizer, size: int) -> CLIPModel:
    """An untrained CLIP for pictures of `size` pixels."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": params.text_width,
        "intermediate_size": 4 * params.text_width,
        "num_hidden_layers": params.text_layers,
        "num_attention_heads": params.heads,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": params.width,
        "intermediate_size": 4 * params.width,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "image_size": size,
        "patch_size": params.patch,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=params.embedding))


def augment(rgba: np.ndarray, rng: np.random.Generator, keep_colour: bool) -> np.ndarray:
    """Random ground, shift of up to an eighth and, where the caption says no style, other colours: (B, S, S, 3) uint8."""
    count, size = rgba.shape[:2]
    ground = rng.integers(0, 256, (count, 3))
    ground[rng.random(count) < 0.6] = 255
    images = composite(rgba, ground)
    for index in range(count):
        dy, dx = rng.integers(-size // 8, size // 8 + 1, 2)
        padded = np.empty((2 * size, 2 * size, 3), np.uint8)
        padded[:] = ground[index]
        padded[size // 2 : size // 2 + size, size // 2 : size // 2 + size] = images[index]
        images[index] = padded[size // 2 + dy : size // 2 + dy + size, size // 2 + dx : size // 2 + dx + size]
        if not keep_colour and rng.random() < 0.4:
            images[index] = images[index][..., rng.permutation(3)]
        if not keep_colour and rng.random() < 0.2:
            images[index] = images[index].mean(-1, keepdims=True)
    return images


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, true: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy with several positives. image, text (B, D) unit vectors; true (B, B): caption i holds of
    picture j; scale: exp of the learnt logarithm of the inverse temperature."""
    logits = scale * text @ image.T
    to_images = true / true.sum(1, keepdim=True)
    to_texts = true / true.sum(0, keepdim=True)
    return (F.cross_entropy(logits, to_images) + F.cross_entropy(logits.T, to_texts.T)) / 2


def train_clip(
    drawings: Drawings, tokenizer: CLIPTokenizer, params: ClipParams, checkpoint: Path, seed: int, device: str
) -> CLIPModel:
    """Train, or resume from `checkpoint`; a step's randomness depends on seed and step alone."""
    torch.manual_seed(seed)
    size = drawings.rgba.shape[1]
    model = make_clip(params, tokenizer, size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    start = 0
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        logger.info("Resuming the CLIP at step %d of %d", start, params.steps)
    contents, styles = (drawings.table[column].to_numpy() for column in ("content", "style"))
    autocast = torch.autocast(device, torch.bfloat16, enabled=has_fast_bf16(device))
    bar = tqdm(range(start, params.steps), initial=start, total=params.steps, desc="CLIP", mininterval=10)
    for step in bar:
        rng = numpy_generator(seed, "clip", step)
        rows = rng.choice(len(contents), params.batch_size, replace=False)
        kind = rng.choice(["content", "style", "both"], p=[0.5, 0.25, 0.25])
        content, style = contents[rows], styles[rows]
        says = {"content": content_prompt, "style": style_prompt, "both": standard_caption}[kind]
        words = {"content": [content], "style": [style], "both": [content, style]}[kind]
        true = np.ones((len(rows), len(rows)), bool)
        true &= (content[:, None] == content[None]) if kind != "style" else True
        true &= (style[:, None] == style[None]) if kind != "content" else True
        pixels = to_tensor(augment(drawings.rgba[rows], rng, kind != "content")).to(device)
        ids = tokenize(tokenizer, [says(*word) for word in zip(*words, strict=True)]).to(device)
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 50)
            group["lr"] = params.learning_rate * warm * 0.5 * (1 + np.cos(np.pi * step / params.steps))
        with autocast:
            output = model(input_ids=ids, pixel_values=pixels)
        scale = model.logit_scale.exp().clamp(max=100)
        truth = torch.from_numpy(true).float().to(device)
        loss = contrastive_loss(output.image_embeds.float(), output.text_embeds.float(), truth, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", kind=kind)
        if (step + 1) % params.checkpoint_every == 0 or step + 1 == params.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(checkpoint, state)
    return model.eval()


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, drawings: Drawings, folder: Path) -> None:
    """Model (fp16), processor and `tags.json`: the words that it knows for contents and for styles."""
    size = model.config.vision_config.image_size
    half = [0.5, 0.5, 0.5]
    processor = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=half, image_std=half
    )
    model.half().save_pretrained(folder)
    model.float()
    load_as_float32(folder / "config.json")
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    tags = {"contents": sorted(set(drawings.table.content)), "styles": sorted(set(drawings.table["style"]))}
    (folder / "tags.json").write_text(json.dumps(tags, indent=1))


@torch.no_grad()
def zero_shot_accuracy(model: CLIPModel, tokenizer: CLIPTokenizer, drawings: Drawings, column: str) -> dict[str, float]:
    """Top-1 and top-5 of the right word for each drawing among all words of `column` (content or style)."""
    words = sorted(set(drawings.table[column]))
    says = content_prompt if column == "content" else style_prompt
    text = model.get_text_features(input_ids=tokenize(tokenizer, [says(word) for word in words])).pooler_output
    parts = to_tensor(drawings.on()).split(256)
    image = torch.cat([model.get_image_features(pixel_values=part).pooler_output for part in parts])
    scores = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    right = torch.tensor([words.index(word) for word in drawings.table[column]])
    rank = (scores > scores.gather(1, right[:, None])).sum(1)
    return {"top1": float((rank == 0).float().mean()), "top5": float((rank < 5).float().mean()), "words": len(words)}

