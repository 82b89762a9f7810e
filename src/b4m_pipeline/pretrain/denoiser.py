"""The embedded base's denoiser: SDXL's UNet in miniature, trained from scratch together with its text encoders."""

import copy
import logging
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm
from transformers import CLIPTokenizer

from b4m_pipeline.common.devices import has_fast_bf16
from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.seeding import derive_seed, numpy_generator, torch_generator
from b4m_pipeline.pretrain.corpus import Drawings
from b4m_pipeline.pretrain.muon import Muon
from b4m_pipeline.pretrain.params import DenoiserParams, PretrainParams, recipe_of
from b4m_pipeline.pretrain.prefetch import prefetch
from b4m_pipeline.pretrain.text import COLOURS, Captioner, encode, make_text_encoders, tokenize
from b4m_pipeline.pretrain.vae import encode_means
from b4m_pipeline.training.checkpoints import resume_progress, save_progress
from b4m_pipeline.training.schedules import warm_cosine

logger = logging.getLogger(__name__)

TIME_IDS = 6  # SDXL's micro-conditioning: original height and width, crop top and left, target height and width
TIME_DIM = 32
_VIEWS_AT_ONCE = 512


@dataclass
class Views:
    """What the denoiser learns from: scaled latents (N, C, s, s), the drawing each is of, and the view's word."""

    latents: torch.Tensor
    row: np.ndarray
    word: np.ndarray


def make_scheduler() -> DDIMScheduler:
    """v-prediction on the squared cosine schedule."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )


def make_unet(params: PretrainParams) -> UNet2DConditionModel:
    """Untrained UNet. Cross-attention on the two lower levels; the condition scales features (scale_shift)."""
    p, levels = params.denoiser, len(params.denoiser.channels)
    return UNet2DConditionModel(
        sample_size=params.size // 2 ** (len(params.vae.channels) - 1),
        in_channels=params.vae.latent_channels,
        out_channels=params.vae.latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        block_out_channels=tuple(p.channels),
        layers_per_block=1,
        cross_attention_dim=sum(params.text.widths),
        attention_head_dim=p.heads,  # diffusers' historical misnomer: this is the number of heads
        use_linear_projection=True,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_DIM,
        projection_class_embeddings_input_dim=params.text.widths[1] + TIME_IDS * TIME_DIM,
    )


def make_views(drawings: Drawings, vae: AutoencoderKL, params: DenoiserParams, seed: int) -> Views:
    """Encode every drawing on white, on some coloured grounds and small; done once, before training. Latents are on the VAE's
    device, where training needs them."""
    count = len(drawings.rgba)
    opaque = drawings.rgba[..., 3].reshape(count, -1).min(1)
    transparent = np.flatnonzero(opaque == 0)
    rows, words = [np.arange(count)], [np.full(count, "", dtype=object)]
    for turn in range(params.coloured):
        rows.append(transparent)
        words.append(numpy_generator(seed, "ground", turn).choice(np.array(list(COLOURS), dtype=object), len(transparent)))
    rows.append(transparent)
    words.append(np.full(len(transparent), "small", dtype=object))
    row, word = np.concatenate(rows), np.concatenate(words)
    parts = []
    for start in range(0, len(row), _VIEWS_AT_ONCE):
        part = slice(start, start + _VIEWS_AT_ONCE)
        pictures = _show(torch.from_numpy(drawings.rgba[row[part]]).to(vae.device), word[part])
        parts.append(encode_means(vae, pictures).to(vae.device) * vae.config.scaling_factor)
    return Views(torch.cat(parts), row, word)


def _show(rgba: torch.Tensor, words: np.ndarray) -> torch.Tensor:
    """Drawings (N, S, S, 4) uint8 as their views' words say -> (N, 3, S, S) in [-1, 1]."""
    alpha = rgba[..., 3:].float() / 255
    premultiplied = torch.cat([rgba[..., :3].float() / 255 * alpha, alpha], -1).permute(0, 3, 1, 2)
    size = rgba.shape[1]
    inner = size * 5 // 8
    top = (size - inner) // 2
    small = torch.from_numpy(words == "small").to(rgba.device)
    if small.any():
        shrunk = F.interpolate(premultiplied[small], size=(inner, inner), mode="bicubic", antialias=True).clamp(0, 1)
        premultiplied[small] = F.pad(shrunk, (top, size - inner - top, top, size - inner - top))
    grounds = np.array([COLOURS.get(word, (255, 255, 255)) for word in words], np.float32) / 255
    ground = torch.from_numpy(grounds).to(rgba.device)[:, :, None, None]
    return (premultiplied[:, :3] + ground * (1 - premultiplied[:, 3:])) * 2 - 1


def view_weights(views: Views, drawings: Drawings, params: DenoiserParams, procedural: set[str]) -> torch.Tensor:
    """How often each view is drawn: by kind of view, and procedural hands less often than drawn ones."""
    white, ground, small = params.view_weights
    weights = np.where(views.word == "", white, np.where(views.word == "small", small, ground / max(1, params.coloured)))
    styled = drawings.table.hand.isin(procedural).to_numpy()[views.row]
    return torch.from_numpy(weights * np.where(styled, params.procedural_weight, 1.0))


@dataclass
class Denoiser:
    """UNet and text encoders as one thing to train, average and save."""

    unet: UNet2DConditionModel
    encoders: tuple

    def modules(self) -> torch.nn.ModuleList:
        return torch.nn.ModuleList([self.unet, *self.encoders])


@dataclass
class Start:
    """A trained base to go on from, and the contents that it was trained on (words, as in the table)."""

    denoiser: Denoiser
    contents: set[str]


class Curve:
    """Loss by step, a part of the checkpoint."""

    def __init__(self) -> None:
        self.points: list[list[float]] = []

    def state_dict(self) -> dict:
        return {"points": self.points}

    def load_state_dict(self, state: dict) -> None:
        self.points = state["points"]


def _optimizers(modules: torch.nn.Module, params: DenoiserParams, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Muon for inner matrices and convolutions of UNet and text encoders; AdamW for token and position embeddings, norms,
    biases and the UNet's two ends. Each group keeps its highest rate as "peak"."""
    unet, text, rest = [], [], []
    for name, parameter in modules.named_parameters():
        table = ".embeddings." in name or name.startswith(("0.conv_in", "0.conv_out"))
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or table:
            rest.append(parameter)
        else:
            (unet if name.startswith("0.") else text).append(parameter)
    peaks = {"unet": params.muon_learning_rate, "text": params.text_muon_learning_rate, "rest": params.adamw_learning_rate}
    groups = {"unet": unet, "text": text, "rest": rest}
    unet_group, text_group, rest_group = ({"params": groups[key], "peak": peaks[key]} for key in groups)
    muon = Muon([unet_group, text_group], weight_decay=params.muon_weight_decay, dtype=dtype)
    return [muon, torch.optim.AdamW([rest_group], betas=(0.9, 0.98), weight_decay=params.weight_decay)]


def train_denoiser(
    drawings: Drawings,
    views: Views,
    tokenizer: CLIPTokenizer,
    params: PretrainParams,
    checkpoint: Path,
    device: str,
    begin: Start | None = None,
) -> tuple[Denoiser, list[list[float]]]:
    """Train, or resume from `checkpoint`, or go on from `begin` by `params.further`; returns the averaged (EMA) weights on the
    CPU and the loss's running mean at every checkpoint, [step, loss].

    A step's randomness depends on the seed and the step's number alone, so a resumed run goes on as if it had not stopped.
    """
    from b4m_pipeline.inputs.filters import STYLES

    p, seed, steps = params.denoiser, params.seed, params.denoiser.steps
    peak, origin, shares = 1.0, [], params.captions
    torch.manual_seed(seed)
    if begin is None:
        denoiser = Denoiser(make_unet(params), make_text_encoders(params.text, tokenizer))
    else:
        denoiser, steps, peak = begin.denoiser, params.further.steps, params.further.peak
        sums = [parameter.detach().double().sum().item() for parameter in denoiser.modules().parameters()]
        origin = [sums, params.further.model_dump(), sorted(begin.contents)]
        shares = params.further.captions or shares
        seed = derive_seed(seed, "further", *origin[0][:8])  # other lots than those that it has seen
    if device == "cpu":
        # the flash kernel's backward is slow at these sizes
        denoiser.unet.set_attn_processor(AttnProcessor())
        for encoder in denoiser.encoders:
            encoder.set_attn_implementation("eager")
    modules = denoiser.modules().to(device).train()
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    optimizers = _optimizers(modules, p, dtype)
    average = copy.deepcopy(modules).requires_grad_(False)
    data = [drawings.digest(), float(views.latents.double().sum()), sorted(tokenizer.get_vocab().items())]
    recipe = [recipe_of(p), params.text.model_dump(), shares.model_dump(), params.size, seed, *origin]
    fingerprint, curve = digest_of(data, *recipe), Curve()
    parts = {"model": modules, "average": average, "curve": curve} | dict(zip(("muon", "adamw"), optimizers, strict=True))
    start = resume_progress(checkpoint, fingerprint, parts)
    scheduler = make_scheduler()
    captioner = Captioner(shares, params.text.placeholders)
    weights = view_weights(views, drawings, p, set(STYLES))
    if begin is not None:
        known = drawings.table.content.isin(begin.contents).to_numpy()[views.row]
        weights = weights * torch.from_numpy(np.where(known, params.further.known_weight, 1.0))
    time_ids = torch.tensor([[params.size, params.size, 0, 0, params.size, params.size]] * p.batch_size, device=device)
    texts = drawings.table[["content", "style", "keywords"]].to_numpy()
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def lesson(step: int) -> tuple[torch.Tensor, ...]:
        """Rows of views (B,), token ids (B, T), timesteps (B,), whether anything and the pooled output is said (B,)."""
        generator = torch_generator(seed, "denoiser", step)
        words = random.Random(derive_seed(seed, "captions", step))
        picked = torch.multinomial(weights, p.batch_size, replacement=True, generator=generator)
        captions = [captioner(words, *texts[views.row[i]], views.word[i]) for i in picked.tolist()]
        uniform, said, pooled_said = torch.rand(3, p.batch_size, generator=generator)
        timesteps = (1000 * uniform ** (1 / p.noisy_bias)).long().clamp(max=999)
        pooled_said = (said >= shares.empty) & (pooled_said >= shares.no_pooled)
        return picked, tokenize(tokenizer, captions), timesteps, (said >= shares.empty).float(), pooled_said.float()

    predict = torch.compile(denoiser.unet) if p.compile else denoiser.unet
    made, latents_of = prefetch(lesson, start, steps, device), views.latents.to(device)
    running, bar = None, tqdm(range(start, steps), initial=start, total=steps, desc="denoiser", mininterval=10)
    for step in bar:
        picked, ids, timesteps, said, pooled_said = (part.to(device, non_blocking=True) for part in next(made))
        latents = latents_of[picked]
        generator = torch.Generator(device).manual_seed(derive_seed(seed, "noise", step))
        noise = torch.randn(latents.shape, generator=generator, device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)
        with autocast:
            embeds, pooled = encode(denoiser.encoders, ids)
            conditions = {"text_embeds": pooled * pooled_said[:, None], "time_ids": time_ids}
            prediction = predict(noisy, timesteps, embeds * said[:, None, None], added_cond_kwargs=conditions).sample
        loss = F.mse_loss(prediction.float(), target)
        factor = peak * warm_cosine(step, steps, p.warmup_steps)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(p.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(modules.parameters()), 1 - decay)
        running = loss.detach() if running is None else 0.98 * running + 0.02 * loss.detach()
        if (step + 1) % p.checkpoint_every == 0 or step + 1 == steps:
            bar.set_postfix(loss=f"{running.item():.4f}")
            curve.points.append([step + 1, round(running.item(), 4)])
            logger.info("denoiser step %d loss %.4f", step + 1, running.item())
            save_progress(checkpoint, fingerprint, step + 1, parts)
    average = average.to("cpu").eval()
    return Denoiser(average[0], (average[1], average[2])), curve.points
