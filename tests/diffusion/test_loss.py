"""The loss: its target, its weights, and what goes through the UNet together."""

import math

import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from b4m_pipeline.diffusion.families import BaseModelError, TimestepSampling, load_family
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.encode import encode_training_set


@pytest.mark.parametrize("family_name", ["sdxl", "sd"])
def test_the_loss_is_the_schedules_own_target(family_name, tiny_base, tiny_sd):
    """The UNet's answer to add_noise's latents, against v or noise; each picture with its own noise and timestep."""
    base = tiny_base if family_name == "sdxl" else BaseModelParams(path=str(tiny_sd), resolution=32)
    family = load_family(base)
    unet = family.load_denoiser()
    encoded = family.encode_pictures([Image.effect_noise((32, 32), 80).convert("RGB") for _ in range(2)])
    mean, deviation = (torch.stack(part) for part in zip(*encoded, strict=True))
    tensors = {"latents_mean": mean, "latents_std": deviation, **family.encode_prompts(["a cat", "a dog"])}
    loss = DiffusionLoss(family, unet, tensors)
    seen = {}
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.update(noisy=args[0], timesteps=args[1]), with_kwargs=True)
    unet.register_forward_hook(lambda module, args, output: seen.update(answer=output.sample))
    rows = torch.tensor([1, 1, 0])
    losses = loss(rows, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    jitter, noise = (torch.randn(3, *mean.shape[1:], generator=generator) for _ in range(2))
    latents = mean[rows] + deviation[rows] * jitter
    schedule = DDPMScheduler.from_pretrained(base.path, subfolder="scheduler")
    assert torch.equal(seen["noisy"], schedule.add_noise(latents, noise, seen["timesteps"]))
    velocity = schedule.config.prediction_type == "v_prediction"
    assert velocity == (family_name == "sdxl")
    target = schedule.get_velocity(latents, noise, seen["timesteps"]) if velocity else noise
    assert torch.allclose(losses, (seen["answer"] - target).square().mean((1, 2, 3)), atol=1e-6)
    assert len(set(seen["timesteps"].tolist())) == 3


def test_noisy_bias_draws_more_of_the_noisy_steps(tiny_base, tiny_training_set):
    family = load_family(tiny_base)
    unet = family.load_denoiser()
    seen = []
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[1].float().mean()), with_kwargs=True)
    for bias in (1.0, 3.0):
        loss = DiffusionLoss(family, unet, tiny_training_set.tensors, TimestepSampling(bias=bias))
        loss(torch.zeros(64, dtype=torch.long), torch.Generator().manual_seed(0))
    assert abs(seen[0] - 500) < 120 and seen[1] > seen[0] + 150


def test_batches_that_go_together_have_the_losses_that_they_have_alone(tiny_base, tiny_training_set):
    family = load_family(tiny_base)
    unet, seen, counts = family.load_denoiser(), [], []
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(len(args[0])), with_kwargs=True)
    loss = DiffusionLoss(family, unet, tiny_training_set.tensors, noise_offset=0.1)
    batches = [torch.tensor([1, 0, 1]), torch.tensor([2])]
    given = [(batch, torch.Generator().manual_seed(place)) for place, batch in enumerate(batches)]
    together = loss.joint_loss(given, before=counts.append)
    assert seen == [4] and counts == [[3, 1]]
    for place, (batch, own) in enumerate(zip(batches, together, strict=True)):
        assert torch.allclose(own, loss(batch, torch.Generator().manual_seed(place)), rtol=1e-4)


@pytest.mark.parametrize("family_name", ["sd", "sdxl"])
def test_min_snr_weighs_the_error_of_the_clean_picture(family_name, tiny_sd, tiny_base, tiny_training_set):
    """By the paper: the loss on x_0 is weighed by min(SNR, gamma); said as one of noise or velocity that is another factor."""
    if family_name == "sd":
        family = load_family(BaseModelParams(path=str(tiny_sd), resolution=32))
        tensors = {key: value for key, value in tiny_training_set.tensors.items() if key.startswith("latents")}
        tensors |= family.encode_prompts(["a cup"] * len(tiny_training_set.table))
    else:
        family, tensors = load_family(tiny_base), tiny_training_set.tensors
    unet, gamma, rows = family.load_denoiser(), 5.0, torch.arange(8)
    plain, weighed = (DiffusionLoss(family, unet, tensors, min_snr_gamma=value) for value in (None, gamma))
    prediction, target, timesteps = plain.predict(rows, torch.Generator().manual_seed(1))
    alphas = family.load_noise_schedule().scheduler.alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    error = (prediction - target).square().mean((1, 2, 3))
    # x_0 = (x_t - sigma eps) / alpha = alpha x_t - sigma v, with alpha^2 + sigma^2 = 1
    clean = error * (1 - alphas) / alphas if family_name == "sd" else error * (1 - alphas)
    expected = clean * snr.clamp(max=gamma)
    assert torch.allclose(weighed(rows, torch.Generator().manual_seed(1)), expected, rtol=1e-4)
    assert torch.allclose(plain(rows, torch.Generator().manual_seed(1)), error, rtol=1e-5)


def test_noise_offset_is_constant_over_a_channel(tiny_base, tiny_training_set):
    family = load_family(tiny_base)
    unet, seen = family.load_denoiser(), []
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args[0], args[1])), with_kwargs=True)
    for offset in (0.0, 0.5):
        loss = DiffusionLoss(family, unet, tiny_training_set.tensors, noise_offset=offset)
        loss(torch.arange(6), torch.Generator().manual_seed(0))
    (plain, timesteps), (shifted, same) = seen
    assert torch.equal(timesteps, same)
    shift = shifted - plain
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-5) and shift.abs().max() > 0.05


@pytest.mark.parametrize("family_name", ["sdxl", "sd"])
def test_pictures_of_several_sizes_share_a_batch(family_name, tiny_base, tiny_sd):
    """Each goes through the UNet at its own size, told that size; the rest of its latents is never looked at."""
    base = tiny_base if family_name == "sdxl" else BaseModelParams(path=str(tiny_sd), resolution=32)
    family = load_family(base)
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((32, 32), (48, 16), (32, 32), (16, 48))]
    cut_out = pictures[1].copy()
    cut_out.putalpha(Image.linear_gradient("L").resize((48, 16)))
    pictures[1] = cut_out
    manifest = pd.DataFrame({"picture": ["a", "b", "c", "d"], "caption": "a snq toy", "token": "snq"})
    encoded = encode_training_set(manifest, dict(zip("abcd", pictures, strict=True)), base)
    factor = family.vae_factor()
    assert encoded.tensors["latents_size"].tolist() == [[h // factor, w // factor] for w, h in (p.size for p in pictures)]
    tensors = {key: value.clone() for key, value in encoded.tensors.items()}
    ((mean, _),) = family.encode_pictures(pictures[1:2])
    assert torch.allclose(tensors["latents_mean"][1][:, : 16 // factor, : 48 // factor], mean, atol=1e-5)
    for key in ("latents_mean", "latents_std", "mask"):
        for row, (height, width) in enumerate(tensors["latents_size"].tolist()):
            tensors[key][row, :, height:] = tensors[key][row, :, :, width:] = torch.nan
    unet, seen = family.load_denoiser(), []
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args[0].shape[-2:], kwargs)), with_kwargs=True)
    loss = DiffusionLoss(family, unet, tensors, mask_floor=0.5)
    rows = torch.tensor([1, 0, 3, 2, 1])
    losses = loss(rows, torch.Generator().manual_seed(0))
    wanted = [(16, 48), (32, 32), (48, 16)]
    assert [tuple(shape) for shape, _ in seen] == [(height // factor, width // factor) for height, width in wanted]
    if family_name == "sdxl":
        sizes = [kwargs["added_cond_kwargs"]["time_ids"][0].tolist() for _, kwargs in seen]
        assert sizes == [[h, w, 0, 0, h, w] for h, w in wanted]
    generator = torch.Generator().manual_seed(0)
    for group in ([0, 4], [1, 3], [2]):
        assert torch.equal(loss(rows[group], generator), losses[group])
    assert math.isfinite(loss.validation(rows, 2, torch.Generator().manual_seed(0)))
    with pytest.raises(BaseModelError, match="multiples of"):
        family.encode_pictures([Image.new("RGB", (33, 32))])
