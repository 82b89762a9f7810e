"""A small CLIP for drawings: the captioner's eyes and the judge that reads prompts.

With a few thousand drawings the pairs of a batch alone teach it next to nothing: there are too few of them that differ in one
thing only. So every picture is told apart from *all* words for contents, for styles and for grounds at once (the words' prompts
are read anew at every step; Khosla et al. 2020, arXiv 2004.11362, is the nearest relative), and the pairs of the batch are the
fourth, smallest part, with captions that say everything.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from b4m_pipeline.common.devices import has_fast_bf16
from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.common.words import article
from b4m_pipeline.pretrain.assemble import load_as_float32
from b4m_pipeline.pretrain.corpus import Drawings
from b4m_pipeline.pretrain.muon import Muon
from b4m_pipeline.pretrain.params import ClipParams, recipe_of
from b4m_pipeline.pretrain.prefetch import prefetch
from b4m_pipeline.pretrain.text import COLOURS, standard_caption, tokenize
from b4m_pipeline.pretrain.vae import to_tensor
from b4m_pipeline.training.checkpoints import resume_progress, save_progress
from b4m_pipeline.training.schedules import warm_cosine

logger = logging.getLogger(__name__)


def content_prompt(content: str) -> str:
    """How a content alone is said, in training and when tags are looked for."""
    return f"{article(content)} {content} emoji"


def style_prompt(style: str) -> str:
    """How a style alone is said."""
    return f"an emoji in {style} style"


def ground_prompt(colour: str) -> str:
    """How a ground alone is said."""
    return f"an emoji on {article(colour)} {colour} background"


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


def augment(rgba: np.ndarray, grounds: np.ndarray, rng: np.random.Generator, keep_colour: np.ndarray) -> np.ndarray:
    """Drawings (B, S, S, 4) on grounds (B, 3), resized to 70 to 110 %, shifted by up to an eighth and, where `keep_colour`
    (B,) is false, in other colours half of the time: (B, S, S, 3) uint8. Opaque drawings show no ground."""
    count, size = rgba.shape[:2]
    images = np.empty((count, size, size, 3), np.uint8)
    for index in range(count):
        drawing = rgba[index]
        if not keep_colour[index] and rng.random() < 0.5:
            colours = drawing[..., rng.permutation(3)]
            if rng.random() < 0.3:
                colours = colours.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
            drawing = np.concatenate([colours, drawing[..., 3:]], -1)
        side = int(size * rng.uniform(0.7, 1.1))
        square = Image.new("RGB", (size, size), tuple(int(c) for c in grounds[index]))
        place = (size - side) // 2 + rng.integers(-size // 8, size // 8 + 1, 2)
        scaled = Image.fromarray(drawing, "RGBA").resize((side, side), Image.Resampling.BILINEAR)
        square.paste(scaled, (int(place[0]), int(place[1])), scaled)
        images[index] = np.asarray(square)
    return images


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, true: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy with several positives. image, text (B, D) unit vectors; true (B, B): caption i holds of
    picture j; scale: the inverse temperature."""
    logits = scale * text @ image.T
    to_images = true / true.sum(1, keepdim=True)
    to_texts = true / true.sum(0, keepdim=True)
    return (F.cross_entropy(logits, to_images) + F.cross_entropy(logits.T, to_texts.T)) / 2


@dataclass
class Lesson:
    """One step's pictures (B, S, S, 3) uint8, a full caption of each, and what is true of them. right: kind -> index of
    the right word (B,), -1 where none is; true (B, B): caption i holds of picture j."""

    pictures: torch.Tensor
    captions: list[str]
    right: dict[str, torch.Tensor]
    true: torch.Tensor


class School:
    """Makes the lessons: draws pictures, augments them and says what is right of each."""

    def __init__(self, drawings: Drawings, batch_size: int):
        self.drawings, self.batch_size = drawings, batch_size
        self.contents, self.styles = (drawings.table[column].to_numpy() for column in ("content", "style"))
        self.words = {"content": sorted(set(self.contents)), "style": sorted(set(self.styles)), "ground": ["white", *COLOURS]}
        self.colours = np.array([(255, 255, 255), *COLOURS.values()])
        self.transparent = drawings.rgba[..., 3].reshape(len(drawings.rgba), -1).min(1) == 0

    def prompts(self) -> list[str]:
        """One for each word, in the order of `words`."""
        says = {"content": content_prompt, "style": style_prompt, "ground": ground_prompt}
        return [says[kind](word) for kind, words in self.words.items() for word in words]

    def lesson(self, rng: np.random.Generator) -> Lesson:
        """A batch of different drawings. A recoloured picture has no style, one without transparency no ground."""
        rows = rng.choice(len(self.contents), min(self.batch_size, len(self.contents)), replace=False)
        ground = np.where(rng.random(len(rows)) < 0.5, 0, rng.integers(0, len(self.colours), len(rows)))
        keep = rng.random(len(rows)) < 0.6
        pictures = augment(self.drawings.rgba[rows], self.colours[ground], rng, keep)
        seen = self.transparent[rows]
        content, style = self.contents[rows], self.styles[rows]
        captions, said = [], []
        for index in range(len(rows)):
            own_style = style[index] if keep[index] else None
            own_ground = self.words["ground"][ground[index]] if seen[index] and ground[index] else None
            captions.append(standard_caption(content[index], own_style, own_ground))
            said.append((content[index], own_style, own_ground))
        right = {
            "content": np.searchsorted(self.words["content"], content),
            "style": np.where(keep, np.searchsorted(self.words["style"], style), -1),
            "ground": np.where(seen, ground, -1),
        }
        true = np.array([[all(a is None or a == b for a, b in zip(c, p, strict=True)) for p in said] for c in said])
        targets = {kind: torch.from_numpy(index).long() for kind, index in right.items()}
        return Lesson(torch.from_numpy(pictures), captions, targets, torch.from_numpy(true).float())


def train_clip(
    drawings: Drawings, tokenizer: CLIPTokenizer, params: ClipParams, checkpoint: Path, seed: int, device: str
) -> CLIPModel:
    """Train, or resume from `checkpoint`; a step's randomness depends on seed and step alone. Returns the model in eval
    mode."""
    torch.manual_seed(seed)
    model = make_clip(params, tokenizer, drawings.rgba.shape[1]).to(device).train()
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim >= 2 and "embedding" not in name
        (matrices if inner else rest).append(parameter)
    optimizers = [
        Muon([{"params": matrices, "peak": params.muon_learning_rate}], weight_decay=params.muon_weight_decay, dtype=dtype),
        torch.optim.AdamW([{"params": rest, "peak": params.learning_rate}], weight_decay=0.05, betas=(0.9, 0.98)),
    ]
    fingerprint = digest_of(drawings.digest(), sorted(tokenizer.get_vocab().items()), recipe_of(params), seed)
    parts = {"model": model} | dict(zip(("muon", "adamw"), optimizers, strict=True))
    start = resume_progress(checkpoint, fingerprint, parts)
    school = School(drawings, params.batch_size)
    words = tokenize(tokenizer, school.prompts()).to(device)
    sizes = [len(own) for own in school.words.values()]
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
    made = prefetch(lambda step: school.lesson(numpy_generator(seed, "clip", step)), start, params.steps, device)
    running, bar = None, tqdm(range(start, params.steps), initial=start, total=params.steps, desc="CLIP", mininterval=10)
    for step in bar:
        lesson = next(made)
        pixels = to_tensor(lesson.pictures.to(device))
        captions = tokenize(tokenizer, lesson.captions).to(device)
        factor = warm_cosine(step, params.steps, params.warmup_steps)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        with autocast:
            image = model.get_image_features(pixel_values=pixels).pooler_output
            text = model.get_text_features(input_ids=torch.cat([words, captions])).pooler_output
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        *known, said = text.split([*sizes, len(captions)])
        loss = 0.5 * contrastive_loss(image, said, lesson.true.to(device), scale)
        for own, right in zip(known, lesson.right.values(), strict=True):
            if (right >= 0).any():
                loss = loss + F.cross_entropy(scale * image @ own.T, right.to(device), ignore_index=-1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        running = loss.detach() if running is None else 0.98 * running + 0.02 * loss.detach()
        if (step + 1) % params.checkpoint_every == 0 or step + 1 == params.steps:
            bar.set_postfix(loss=f"{running.item():.3f}")
            logger.info("CLIP step %d loss %.4f", step + 1, running.item())
            save_progress(checkpoint, fingerprint, step + 1, parts)
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
    (folder / "tags.json").write_text(json.dumps(tags, indent=1), encoding="utf-8")


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
