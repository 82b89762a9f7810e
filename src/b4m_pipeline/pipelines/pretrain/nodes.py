"""Nodes of `pretrain`. Each stage resumes from its own checkpoint; every stage's result is a dataset."""

from pathlib import Path

import pandas as pd

from b4m_pipeline.base_model.params import PretrainParams


def render_corpus(pretrain: PretrainParams):
    """Vector sources -> drawings with their splits."""
    from b4m_pipeline.base_model import corpus

    options = pretrain.corpus.model_dump()
    return corpus.build(source=Path(options.pop("source")), size=pretrain.size, **options)


def train_tokenizer(drawings, pretrain: PretrainParams) -> str:
    """Learn the vocabulary from captions of what may be shown; returns the tokenizer's folder."""
    from b4m_pipeline.base_model import text

    shown = drawings.select(~drawings.table.split.str.startswith("held_out"))
    placeholders = pretrain.text.placeholders
    captions = text.caption_corpus(shown.table, pretrain.captions, placeholders, pretrain.seed)
    folder = Path(pretrain.checkpoints) / "tokenizer"
    text.train_tokenizer(captions, pretrain.text).save_pretrained(folder)
    return str(folder)


def train_vae(drawings, pretrain: PretrainParams) -> str:
    """Train the autoencoder on every drawing that is not held out; returns its folder."""
    from b4m_pipeline.base_model import vae
    from b4m_pipeline.devices import pick_device

    shown = drawings.select(~drawings.table.split.str.startswith("held_out"))
    folder = Path(pretrain.checkpoints)
    device = pick_device(pretrain.device)
    model = vae.train_vae(shown, pretrain.size, pretrain.vae, folder / "vae.safetensors", pretrain.seed, device)
    model.save_pretrained(folder / "vae")
    return str(folder / "vae")


def train_base(drawings, tokenizer_folder: str, vae_folder: str, pretrain: PretrainParams) -> str:
    """Train the denoiser with its text encoders and write the whole model in diffusers' format; returns its folder."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    from b4m_pipeline.base_model import assemble, denoiser
    from b4m_pipeline.devices import pick_device

    device = pick_device(pretrain.device)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    vae = AutoencoderKL.from_pretrained(vae_folder, use_safetensors=True).to(device)
    train = drawings.select(drawings.table.split == "train")
    views = denoiser.make_views(train, vae, pretrain.denoiser, pretrain.seed)
    checkpoint = Path(pretrain.checkpoints) / "denoiser.safetensors"
    trained = denoiser.train_denoiser(train, views, tokenizer, pretrain, checkpoint, device)
    assemble.save_base(assemble.assemble(vae.cpu(), trained, tokenizer), Path(pretrain.output))
    return pretrain.output


def train_clip(drawings, tokenizer_folder: str, pretrain: PretrainParams) -> str:
    """Train the small contrastive CLIP; returns its folder."""
    from transformers import CLIPTokenizer

    from b4m_pipeline.base_model import contrastive
    from b4m_pipeline.devices import pick_device

    shown = drawings.select(~drawings.table.split.str.startswith("held_out"))
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    checkpoint = Path(pretrain.checkpoints) / "clip.safetensors"
    device = pick_device(pretrain.device)
    model = contrastive.train_clip(shown, tokenizer, pretrain.clip, checkpoint, pretrain.seed, device).cpu()
    contrastive.save_clip(model, tokenizer, shown, Path(pretrain.clip_output))
    return pretrain.clip_output


def judge_base(
    drawings, base_folder: str, clip_folder: str, pretrain: PretrainParams
):
    """Figures of the base (trained and unseen pairs) and of the CLIP (unseen hand), and a sheet of samples."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPModel, CLIPTokenizer

    from b4m_pipeline.base_model import assemble, contrastive

    pipeline = StableDiffusionXLPipeline.from_pretrained(base_folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    figures = assemble.judge(pipeline, drawings, pretrain.judged_pairs, pretrain.seed)
    clip = CLIPModel.from_pretrained(clip_folder, use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    known = drawings.table.split.eq("held_out_hand") & drawings.table.hand.eq(pretrain.corpus.held_out_hands[0])
    accuracy = contrastive.zero_shot_accuracy(clip, tokenizer, drawings.select(known), "content")
    row = {"split": f"clip: content in {pretrain.corpus.held_out_hands[0]}", "pairs": int(known.sum())}
    figures = pd.concat([figures, pd.DataFrame([row | {k: accuracy[k] for k in ("top1", "top5")}])], ignore_index=True)
    contents = [name.replace("-", " ") for name in pretrain.corpus.contents[:: max(1, len(pretrain.corpus.contents) // 8)]]
    sheet = assemble.sample_sheet(pipeline, drawings, contents[:8], pretrain.corpus.hands, pretrain.seed)
    return figures, sheet
