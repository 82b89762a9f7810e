"""What training minimises: the error of the base model's prediction for noisy latents, of any family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from b4m_pipeline.diffusion.families import Family
from b4m_pipeline.diffusion.families.noise import TimestepSampling


class MaskError(ValueError):
    """A masked loss is wanted, and there are no masks."""


Batch = tuple[torch.Tensor, torch.Generator]
"""Rows (B,) of the training set, and what their noise is drawn from."""


@dataclass
class NoisyLatents:
    """Pictures of one size as the denoiser gets them: rows (B,), noisy latents and what it should say of them (B, C, h, w)
    each, timesteps (B,), and the pictures' height and width, None where all have the base model's."""

    rows: torch.Tensor
    latents: torch.Tensor
    target: torch.Tensor
    timesteps: torch.Tensor
    size: tuple[int, int] | None

    @classmethod
    def join(cls, parts: list["NoisyLatents"]) -> "NoisyLatents":
        """Parts of one size, one after another."""
        names = ("rows", "latents", "target", "timesteps")
        rows, latents, target, timesteps = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        return cls(rows, latents, target, timesteps, parts[0].size)

    def take(self, places: torch.Tensor) -> "NoisyLatents":
        """Some of them."""
        if len(places) == len(self.rows):
            return self
        own = places.to(self.rows.device)
        return NoisyLatents(self.rows[own], self.latents[own], self.target[own], self.timesteps[own], self.size)


class DiffusionLoss:
    """The denoising loss on an encoded training set: callable on rows, every image with its own noise and timestep.

    tensors: those of a TrainingSet, moved to the denoiser's device once. Pictures of different sizes in a batch go through the
    denoiser one size after another. Raises ObjectiveError for a parameter that means nothing for the base model.
    """

    def __init__(
        self,
        family: Family,
        denoiser: Any,
        tensors: dict[str, torch.Tensor],
        sampling: TimestepSampling | None = None,
        min_snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        mask_floor: float | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        """share: (i, n) for the i-th of n processes that share each batch: it computes every n-th image, with the noise that
        this has in the whole batch."""
        self.family, self.denoiser, self.noise_offset = family, denoiser, noise_offset
        self.sampling, self.share = sampling or TimestepSampling(), share
        self.schedule = family.load_noise_schedule()
        self.schedule.require(min_snr_gamma, noise_offset, self.sampling)
        self.device = denoiser.device
        self.tensors = {key: value.to(self.device) for key, value in tensors.items()}
        mask = self.tensors.pop("mask", None)  # (N, 1, h, w), no input of the denoiser
        sizes = self.tensors.pop("latents_size", None)
        self.sizes: list[tuple[int, int]] | None = None  # height and width of each row's latents, where they differ
        if sizes is not None:
            self.sizes, self.vae_factor = [tuple(size) for size in sizes.tolist()], family.vae_factor()
        self.masks = None
        if mask_floor is not None:
            if mask is None:
                raise MaskError(
                    "masked_loss: true, and no picture has a mask: use pictures with an alpha channel, lay NAME.mask.png "
                    "beside them, or set it to false"
                )
            self.masks = mask_floor + (1 - mask_floor) * mask
        self.weigh = self.schedule.weigh(min_snr_gamma, self.device)

    def __call__(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Rows (B,) of the training set -> mean squared error of each image, weighed by its mask, where masks are used, and by
        its timestep, (B,), or (B / n,) of a share."""
        parts, places, begun = [], [], 0
        for group in self.group_by_size(rows):
            noisy = self.add_noise(rows[group], generator)
            own = self._own(len(group), begun)
            begun += len(group)
            if len(own):
                parts.append(self._measured(noisy.take(own)))
                places.append(group[own])
        return torch.cat(parts)[torch.cat(places).argsort().to(self.device)]

    def _own(self, number: int, begun: int = 0) -> torch.Tensor:
        """Which of so many images are this process's, where `begun` of the batch came before them."""
        rank, world = self.share
        return torch.arange((rank - begun) % world, number, world)

    def joint_loss(self, batches: list[Batch], before: Callable[[list[int]], None] | None = None) -> list[torch.Tensor]:
        """The same for several batches, (B_i,) each, of pictures of one size, in one pass of the denoiser. Every batch has the
        noise that it would have by itself. before: called before the pass with the sizes of all, or of their shares."""
        parts = [self.add_noise(rows, generator).take(self._own(len(rows))) for rows, generator in batches]
        counts = [len(part.rows) for part in parts]
        if before:
            before(counts)
        return list(self._measured(NoisyLatents.join(parts)).split(counts))

    def group_by_size(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Places in `rows` (B,) of pictures of one size, size by size: what can go through the denoiser together."""
        if self.sizes is None:
            return [torch.arange(len(rows))]
        groups: dict[tuple[int, int], list[int]] = {}
        for place, row in enumerate(rows.tolist()):
            groups.setdefault(self.sizes[row], []).append(place)
        return [torch.tensor(places) for places in groups.values()]

    @torch.no_grad()
    def validation(self, rows: torch.Tensor, timesteps: int, generator: torch.Generator, batch_size: int = 8) -> float:
        """Mean loss of rows (M,) at so many evenly spaced timesteps each: with the same generator, the same noise."""
        spaced = self.schedule.timesteps((torch.arange(timesteps) + 0.5) / timesteps)
        parts = []
        for group in self.group_by_size(rows):
            each, times = rows[group].repeat_interleave(timesteps), spaced.repeat(len(group))
            for part, at in zip(each.split(batch_size), times.split(batch_size), strict=True):
                parts.append(self._measured(self.add_noise(part, generator, at)))
        return float(torch.cat(parts).mean())

    def _measured(self, noisy: NoisyLatents) -> torch.Tensor:
        error = F.mse_loss(self._through(noisy), noisy.target, reduction="none")
        if self.masks is not None:
            height, width = error.shape[-2:]
            mask = self.masks[noisy.rows, :, :height, :width]
            error = error * mask / mask.mean((1, 2, 3), keepdim=True).clamp(min=1e-8)  # a mask may be black where it is cut
        return error.flatten(1).mean(1) * self.weigh(noisy.timesteps)

    def predict(
        self, rows: torch.Tensor, generator: torch.Generator, timesteps: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The denoiser's output for noisy latents of `rows`, all of one size (see `group_by_size`), and what it should have
        been, (B, C, h, w) each, float32, and the timesteps (B,)."""
        noisy = self.add_noise(rows, generator, timesteps)
        return self._through(noisy), noisy.target, noisy.timesteps

    def add_noise(self, rows: torch.Tensor, generator: torch.Generator, timesteps: torch.Tensor | None = None) -> NoisyLatents:
        """Noise `rows`, all of one size, at timesteps (B,) that are drawn by lot unless given. All randomness is drawn from
        `generator` on the CPU, so that it is the same on every device."""
        size = None
        if self.sizes is not None:
            ((high, wide),) = {self.sizes[row] for row in rows.tolist()}
            size = high * self.vae_factor, wide * self.vae_factor
        rows = rows.to(self.device)
        mean, deviation = self.tensors["latents_mean"][rows], self.tensors["latents_std"][rows]
        if size is not None:
            mean, deviation = mean[..., :high, :wide], deviation[..., :high, :wide]
        jitter, noise = (torch.randn(mean.shape, generator=generator).to(self.device) for _ in range(2))
        uniform = torch.rand(len(rows), generator=generator)
        if timesteps is None:
            timesteps = self.schedule.timesteps(self.sampling.draw(uniform, self._shift(size)))
        timesteps = timesteps.to(self.device)
        if self.noise_offset:
            noise = noise + self.noise_offset * torch.randn((*mean.shape[:2], 1, 1), generator=generator).to(self.device)
        latents = mean + deviation * jitter  # a fresh draw from the VAE's posterior (B, C, h, w)
        noisy_latents, target = self.schedule.add_noise(latents, noise, timesteps)
        return NoisyLatents(rows, noisy_latents, target, timesteps, size)

    def _shift(self, size: tuple[int, int] | None) -> float:
        if self.sampling.shift == "auto":
            return self.family.timestep_shift(size)
        return self.sampling.shift or 1.0

    def _through(self, noisy: NoisyLatents) -> torch.Tensor:
        """The denoiser's output (B, C, h, w), float32."""
        dtype = self.denoiser.dtype
        prompts = {key: value for key, value in self.tensors.items() if not key.startswith("latents_")}
        prompts = {key: value[noisy.rows].to(dtype) for key, value in prompts.items()}
        return self.family.predict(self.denoiser, noisy.latents.to(dtype), noisy.timesteps, prompts, noisy.size).float()
