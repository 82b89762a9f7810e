"""Nodes of the `pretrain` pipelines, which need no Kedro themselves. Each stage resumes from its own checkpoint, and starts
anew if what it is made from has changed."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from b4m_pipeline.pretrain.params import PretrainParams


def render_corpus(pretrain: PretrainParams, further: Iterable[str] = ()):
    """Vector sources -> drawings with their splits. further: contents besides those of the parameters."""
    from b4m_pipeline.pretrain import corpus

    options = pretrain.corpus.model_dump()
    options["contents"] = list(dict.fromkeys([*options["contents"], *further]))
    return corpus.build(source=Path(options.pop("source")), size=pretrain.size, **options)


def render_wider_corpus(pretrain: PretrainParams):
    """The corpus with the further contents."""
    return render_corpus(pretrain, pretrain.further.contents if pretrain.further else [])


def render_known_corpus(pretrain: PretrainParams):
    """The corpus with those further contents that the base in `output` was trained on."""
    from b4m_pipeline.pretrain import assemble

    known = {content for training in assemble.read_history(Path(pretrain.output)) for content in training["contents"]}
    further = pretrain.further.contents if pretrain.further else []
    return render_corpus(pretrain, [name for name in further if name.replace("-", " ") in known])


def train_tokenizer(drawings, pretrain: PretrainParams) -> str:
    """Learn the vocabulary from captions of what may be shown; returns the tokenizer's folder."""
    from b4m_pipeline.pretrain import text

    shown = drawings.select(~drawings.table.split.str.startswith("held_out"))
    placeholders = pretrain.text.placeholders
    captions = text.caption_corpus(shown.table, pretrain.captions, placeholders, pretrain.seed)
    folder = Path(pretrain.checkpoints) / "tokenizer"
    text.train_tokenizer(captions, pretrain.text).save_pretrained(folder)
    return str(folder)


def train_vae(drawings, pretrain: PretrainParams) -> str:
    """Train the autoencoder on every drawing that is not held out; returns its folder."""
    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.pretrain import vae

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

    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.pretrain import assemble, denoiser

    device = pick_device(pretrain.device)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    vae = AutoencoderKL.from_pretrained(vae_folder, use_safetensors=True).to(device)
    train = drawings.select(drawings.table.split == "train")
    views = denoiser.make_views(train, vae, pretrain.denoiser, pretrain.seed)
    checkpoint = Path(pretrain.checkpoints) / "denoiser.safetensors"
    trained, curve = denoiser.train_denoiser(train, views, tokenizer, pretrain, checkpoint, device)
    assemble.save_base(assemble.assemble(vae.cpu(), trained, tokenizer), Path(pretrain.output))
    assemble.write_history(Path(pretrain.output), [_record(train, pretrain, pretrain.denoiser.steps, curve)])
    return pretrain.output


def train_base_further(drawings, pretrain: PretrainParams) -> str:
    """Go on from the base that is there, on the corpus as it is now, by `pretrain.further`; VAE and tokenizer stay. Raises
    CorpusError if there is no base."""
    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.pretrain import assemble, denoiser
    from b4m_pipeline.pretrain.corpus import CorpusError

    if pretrain.further is None:
        raise CorpusError("pretrain.further is null: say there for how many steps to go on")
    device, folder = pick_device(pretrain.device), Path(pretrain.output)
    begin, vae, tokenizer, history = assemble.load_start(folder)
    train = drawings.select(drawings.table.split == "train")
    views = denoiser.make_views(train, vae.to(device), pretrain.denoiser, pretrain.seed)
    checkpoint = Path(pretrain.checkpoints) / "denoiser_further.safetensors"
    trained, curve = denoiser.train_denoiser(train, views, tokenizer, pretrain, checkpoint, device, begin)
    assemble.save_base(assemble.assemble(vae.cpu(), trained, tokenizer), folder)
    assemble.write_history(folder, [*history, _record(train, pretrain, pretrain.further.steps, curve)])
    return pretrain.output


def _record(train, pretrain: PretrainParams, steps: int, curve: list) -> dict:
    """What a training of the denoiser was, for the base's history."""
    from b4m_pipeline.common.provenance import code_version

    return {
        "code_version": code_version(),
        "seed": pretrain.seed,
        "steps": steps,
        "batch_size": pretrain.denoiser.batch_size,
        "contents": sorted(set(train.table.content)),
        "hands": sorted(set(train.table.hand)),
        "drawings": train.digest(),
        "loss": curve,
    }


def train_clip(drawings, tokenizer_folder: str, pretrain: PretrainParams) -> str:
    """Train the small CLIP on the contents of the experiments, those held out of the denoiser too (it must be able to judge
    them), by the known hands alone; returns its folder."""
    from transformers import CLIPTokenizer

    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.pretrain import contrastive

    shown = drawings.select(drawings.table.split.isin(["train", "unseen_pair", "held_out_content"]))
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    checkpoint = Path(pretrain.checkpoints) / "clip.safetensors"
    device = pick_device(pretrain.device)
    model = contrastive.train_clip(shown, tokenizer, pretrain.clip, checkpoint, pretrain.seed, device).cpu()
    contrastive.save_clip(model, tokenizer, shown, Path(pretrain.clip_output))
    return pretrain.clip_output


def find_base(pretrain: PretrainParams) -> tuple[str, str]:
    """Folders of base and CLIP that an earlier run, or the repository, has. Raises CorpusError if one is not there."""
    from b4m_pipeline.pretrain.corpus import CorpusError

    for folder, marker in ((pretrain.output, "model_index.json"), (pretrain.clip_output, "config.json")):
        if not (Path(folder) / marker).is_file():
            raise CorpusError(f"No model at {folder}: run the pretrain pipeline first, or set pretrain.output and clip_output")
    return pretrain.output, pretrain.clip_output


def judge_parts(drawings, base_folder: str, clip_folder: str, pretrain: PretrainParams) -> pd.DataFrame:
    """What VAE and CLIP can do by themselves: reconstruction (dB) and content right among all words, for the first known hand
    and the held-out ones."""
    from diffusers import AutoencoderKL
    from transformers import CLIPModel, CLIPTokenizer

    from b4m_pipeline.pretrain import contrastive, vae

    autoencoder = AutoencoderKL.from_pretrained(base_folder, subfolder="vae", use_safetensors=True)
    clip = CLIPModel.from_pretrained(clip_folder, use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    corpus, rows = pretrain.corpus, []
    contents = {name.replace("-", " ") for name in (*corpus.contents, *corpus.held_out_contents)}
    for hand in dict.fromkeys([corpus.hands[0], *corpus.held_out_hands]):
        drawn = drawings.select(drawings.table.hand.eq(hand) & drawings.table.content.isin(contents))
        accuracy = contrastive.zero_shot_accuracy(clip, tokenizer, drawn, "content")
        row = {
            "what": f"VAE and CLIP: {hand}",
            "pairs": len(drawn.table),
            "psnr": vae.psnr(autoencoder, vae.to_tensor(drawn.on())),
        }
        rows.append(row | {"clip_top1": accuracy["top1"], "clip_top5": accuracy["top5"]})
    return pd.DataFrame(rows)


def judge_base(drawings, base_folder: str, pretrain: PretrainParams):
    """What the base draws by plain prompts and what it can be taught by plain LoRA -> figures of each, a sheet of samples
    beside the true drawings, and a sheet of what was taught."""
    from diffusers import StableDiffusionXLPipeline

    from b4m_pipeline.common.devices import pick_device
    from b4m_pipeline.common.sheets import Row, paint_grid
    from b4m_pipeline.diffusion.params import BaseModelParams
    from b4m_pipeline.evaluation.judges import EfficientNetJudge
    from b4m_pipeline.pretrain import report

    device, corpus = pick_device(pretrain.device), pretrain.corpus
    pipeline = StableDiffusionXLPipeline.from_pretrained(base_folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    table = drawings.table
    chosen = set(table.content[table.split.isin(report.JUDGED_SPLITS)])
    grid = drawings.select(table.content.isin(chosen))
    bank = report.Bank(pipeline, grid, EfficientNetJudge(device))
    own = pretrain.report
    prompted = report.judge_prompts(pipeline, bank, own.pairs, pretrain.seed)
    prompted = pd.concat([prompted, report.judge_ceiling(bank, own.pairs, pretrain.seed)], ignore_index=True)
    base = BaseModelParams(path=base_folder, resolution=pretrain.size)
    taught, pictures = report.judge_teaching(pipeline, bank, own, base, pretrain.seed)
    names = [name.replace("-", " ") for name in corpus.contents[:: max(1, len(corpus.contents) // 8)]][:8]
    hands = corpus.hands[: own.sheet_hands]
    sheet = report.sample_sheet(pipeline, grid, names, hands, pretrain.seed)
    lessons = paint_grid([Row("", images, what) for what, images in pictures.items()], cell=pretrain.size)
    return prompted, taught, sheet, lessons


def collect_figures(parts: pd.DataFrame, prompted: pd.DataFrame, taught: pd.DataFrame) -> pd.DataFrame:
    """One table of all figures."""
    return pd.concat([prompted, taught, parts], ignore_index=True).round(4)
