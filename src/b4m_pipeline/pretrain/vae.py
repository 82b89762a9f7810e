"""The embedded base's autoencoder: AutoencoderKL with 4x reduction, trained on drawings over backgrounds of any colour."""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm

from b4m_pipeline.common.devices import has_fast_bf16
from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.seeding import numpy_generator, torch_generator
from b4m_pipeline.inputs.filters import random_texture
from b4m_pipeline.pretrain.corpus import Drawings, composite
from b4m_pipeline.pretrain.params import VaeParams, recipe_of
from b4m_pipeline.pretrain.prefetch import prefetch
from b4m_pipeline.training.checkpoints import resume_progress, save_progress
from b4m_pipeline.training.schedules import warm_cosine

logger = logging.getLogger(__name__)


def make_vae(params: VaeParams, size: int) -> AutoencoderKL:
    """An untrained autoencoder for pictures of `size` pixels."""
    blocks = len(params.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(params.channels),
        layers_per_block=params.layers_per_block,
        latent_channels=params.latent_channels,
        norm_num_groups=8,
        sample_size=size,
        force_upcast=False,
    )


def to_tensor(rgb: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(N, S, S, 3) uint8 -> (N, 3, S, S) float in [-1, 1]."""
    return torch.as_tensor(rgb).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def texture(rgb: np.ndarray, rng: np.random.Generator, share: float, unit: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Lay random textures in random colours over a share of the pictures (N, S, S, 3) uint8; the others stay as they are. unit:
    the range of the textures' scale, see `random_texture`."""
    rgb = rgb.copy()
    for index in np.flatnonzero(rng.random(len(rgb)) < share):
        cover = random_texture(rng, rgb.shape[1], rng.uniform(*unit))[..., None] * rng.uniform(0.15, 1)
        colour = rng.integers(0, 256, 3).astype(np.float32)
        rgb[index] = rgb[index] * (1 - cover) + colour * cover + 0.5
    return rgb


def _gradient_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 between the pictures' horizontal and vertical differences: keeps contours sharp without a discriminator."""
    along_x = F.l1_loss(prediction.diff(dim=-1), target.diff(dim=-1))
    return along_x + F.l1_loss(prediction.diff(dim=-2), target.diff(dim=-2))


def train_vae(drawings: Drawings, size: int, params: VaeParams, checkpoint: Path, seed: int, device: str) -> AutoencoderKL:
    """Train, or resume from `checkpoint`, and set the scaling factor to one over the latents' standard deviation."""
    torch.manual_seed(seed)
    vae = make_vae(params, size).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=params.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    fingerprint = digest_of(drawings.digest(), recipe_of(params), size, seed)
    parts = {"model": vae, "optimizer": optimizer}
    start = resume_progress(checkpoint, fingerprint, parts)
    vae.train()
    unit = (0.75, max(1.0, size / 64))  # of the detail that 64 pixels show, and finer

    def pictures(step: int) -> torch.Tensor:
        rng = numpy_generator(seed, "vae", step)
        rows = rng.integers(0, len(drawings.rgba), params.batch_size)
        ground = rng.integers(0, 256, (params.batch_size, 3))
        ground[rng.random(params.batch_size) < 0.5] = 255  # half of them on white, as most pictures are
        rgba = drawings.rgba[rows]
        if step < params.crop_share * params.steps:
            top, left = rng.integers(0, size // 2 + 1, 2)
            rgba = rgba[:, top : top + size // 2, left : left + size // 2]
        return torch.from_numpy(texture(composite(rgba, ground), rng, params.texture_share, unit))

    autocast = torch.autocast(device, torch.bfloat16, enabled=has_fast_bf16(device))
    made = prefetch(pictures, start, params.steps, device)
    bar = tqdm(range(start, params.steps), initial=start, total=params.steps, desc="VAE", mininterval=10)
    for step in bar:
        images = to_tensor(next(made).to(device))
        with autocast:
            posterior = vae.encode(images).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            noise = torch.randn(mean.shape, generator=torch_generator(seed, "vae", step)).to(device)
            reconstruction = vae.decode(mean + std * noise).sample.float()
        loss = F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)
        divergence = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).sum([1, 2, 3]).mean()
        loss = loss + _gradient_loss(reconstruction, images) + params.kl_weight * divergence
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * warm_cosine(step, params.steps, params.steps // 20)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % params.checkpoint_every == 0 or step + 1 == params.steps:
            bar.set_postfix(loss=f"{loss.item():.4f}")
            logger.info("VAE step %d loss %.4f", step + 1, loss.item())
            save_progress(checkpoint, fingerprint, step + 1, parts)
    vae.eval()
    sample = to_tensor(drawings.select(slice_mask(len(drawings.rgba), 512)).on())
    vae.register_to_config(scaling_factor=float(1 / encode_means(vae, sample).std()))
    return vae


def slice_mask(total: int, wanted: int) -> np.ndarray:
    """A boolean mask of about `wanted` evenly spaced rows out of `total`."""
    mask = np.zeros(total, bool)
    mask[:: max(1, total // wanted)] = True
    return mask


@torch.no_grad()
def encode_means(vae: AutoencoderKL, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """(N, 3, S, S) in [-1, 1] -> posterior means (N, C, s, s), unscaled, on the CPU."""
    parts = [vae.encode(chunk.to(vae.device)).latent_dist.mean.cpu() for chunk in images.split(batch)]
    return torch.cat(parts)


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """(N, 3, S, S) in [-1, 1], encoded and decoded -> the same shape and range, on the CPU."""
    parts = [vae.decode(vae.encode(chunk.to(vae.device)).latent_dist.mean).sample.cpu() for chunk in images.split(batch)]
    return torch.cat(parts).clamp(-1, 1)


def psnr(vae: AutoencoderKL, images: torch.Tensor, batch: int = 128) -> float:
    """Peak signal-to-noise ratio of reconstruction in dB; pictures in [-1, 1]."""
    errors = ((round_trip(vae, images, batch) - images) / 2).square().flatten(1).mean(1)
    return float(-10 * torch.log10(errors).mean())
