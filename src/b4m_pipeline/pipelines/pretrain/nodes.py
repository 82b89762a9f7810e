"""Nodes of `pretrain`. Each stage resumes from its own checkpoint, and starts anew if what it is made from has changed."""

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
    """Train the small CLIP on the contents of the experiments, those held out of the denoiser too (it must be able to judge
    them), by the known hands alone; returns its folder."""
    from transformers import CLIPTokenizer

    from b4m_pipeline.base_model import contrastive
    from b4m_pipeline.devices import pick_device

    shown = drawings.select(drawings.table.split.isin(["train", "unseen_pair", "held_out_content"]))
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    checkpoint = Path(pretrain.checkpoints) / "clip.safetensors"
    device = pick_device(pretrain.device)
    model = contrastive.train_clip(shown, tokenizer, pretrain.clip, checkpoint, pretrain.seed, device).cpu()
    contrastive.save_clip(model, tokenizer, shown, Path(pretrain.clip_output))
    return pretrain.clip_output


def judge_base(drawings, base_folder: str, clip_folder: str, pretrain: PretrainParams):
    """Figures of the base (trained and unseen pairs), of its VAE (known and held-out hands) and of the CLIP (held-out hands),
    and a sheet of samples."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPModel, CLIPTokenizer

    from b4m_pipeline.base_model import assemble, contrastive, vae

    pipeline = StableDiffusionXLPipeline.from_pretrained(base_folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    figures = assemble.judge(pipeline, drawings, pretrain.judged_pairs, pretrain.seed)
    clip = CLIPModel.from_pretrained(clip_folder, use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    corpus, rows = pretrain.corpus, []
    contents = {name.replace("-", " ") for name in (*corpus.contents, *corpus.held_out_contents)}
    for hand in dict.fromkeys([corpus.hands[0], *corpus.held_out_hands]):
        drawn = drawings.select(drawings.table.hand.eq(hand) & drawings.table.content.isin(contents))
        accuracy = contrastive.zero_shot_accuracy(clip, tokenizer, drawn, "content")
        row = {"split": f"VAE and CLIP: {hand}", "pairs": len(drawn.table), "top1": accuracy["top1"], "top5": accuracy["top5"]}
        rows.append(row | {"psnr": vae.psnr(pipeline.vae, vae.to_tensor(drawn.on()))})
    figures = pd.concat([figures, pd.DataFrame(rows)], ignore_index=True)
    contents = [name.replace("-", " ") for name in pretrain.corpus.contents[:: max(1, len(pretrain.corpus.contents) // 8)]]
    sheet = assemble.sample_sheet(pipeline, drawings, contents[:8], pretrain.corpus.hands, pretrain.seed)
    return figures, sheet
