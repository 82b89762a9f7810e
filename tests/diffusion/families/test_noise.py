"""Noise, targets and timesteps of both objectives against their formulas."""

import math

import pytest
import torch

from b4m_pipeline.diffusion.families import BaseModelError
from b4m_pipeline.diffusion.families.noise import DdpmSchedule, FlowSchedule, ObjectiveError, TimestepSampling

LATENTS, NOISE = (torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
FLOW = FlowSchedule({"num_train_timesteps": 1000})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddpm_is_learnt_as_noise_or_as_velocity(kind) -> None:
    schedule = DdpmSchedule({"prediction_type": kind, "beta_schedule": "scaled_linear"})
    timesteps = schedule.timesteps(torch.tensor([0.0, 0.5, 1.0]))
    assert timesteps.tolist() == [0, 500, 999]
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2
    signal = torch.cumprod(1 - betas, 0)[timesteps].sqrt().view(-1, 1, 1, 1)
    spread = (1 - signal**2).sqrt()
    noisy, target = schedule.add_noise(LATENTS, NOISE, timesteps)
    assert torch.allclose(noisy, signal * LATENTS + spread * NOISE, atol=1e-5)
    assert torch.allclose(target, NOISE if kind == "epsilon" else signal * NOISE - spread * LATENTS, atol=1e-5)


def test_rectified_flow_goes_straight_from_picture_to_noise() -> None:
    timesteps = FLOW.timesteps(torch.tensor([0.0, 0.25, 1.0]))
    assert timesteps.tolist() == [0.0, 250.0, 1000.0]
    noisy, target = FLOW.add_noise(LATENTS, NOISE, timesteps)
    assert torch.equal(noisy[0], LATENTS[0]) and torch.equal(noisy[2], NOISE[2])
    assert torch.allclose(noisy[1], 0.75 * LATENTS[1] + 0.25 * NOISE[1])
    assert torch.equal(target, NOISE - LATENTS)
    assert FLOW.weigh(None, torch.device("cpu"))(timesteps).tolist() == [1.0] * 3


def test_timesteps_are_drawn_as_asked() -> None:
    uniform = torch.linspace(0.0005, 0.9995, 1000)
    assert torch.equal(TimestepSampling().draw(uniform), uniform)
    assert torch.allclose(TimestepSampling(bias=2.0).draw(uniform), uniform.sqrt())
    normal = TimestepSampling(distribution="logit_normal").draw(uniform).logit()
    assert abs(normal.mean()) < 1e-3 and abs(normal.std() - 1) < 0.01
    shifted = TimestepSampling().draw(uniform, shift=3.0)
    assert torch.allclose(shifted, 3 * uniform / (1 + 2 * uniform)) and shifted.mean() > uniform.mean() + 0.1
    edge = TimestepSampling(distribution="logit_normal").draw(torch.tensor([0.0]), shift=3.0)
    assert edge.tolist() == [0.0]  # torch.rand may give it


def test_what_means_nothing_for_an_objective_is_refused_by_name() -> None:
    plain, ddpm = TimestepSampling(), DdpmSchedule({})
    FLOW.require(None, 0.0, TimestepSampling(shift="auto"))
    ddpm.require(5.0, 0.1, TimestepSampling(2.0, "logit_normal", 3.0))
    with pytest.raises(ObjectiveError, match=r"^make\.min_snr_gamma is 5\.0, .* set it to null"):
        FLOW.require(5.0, 0.0, plain, "make.")
    with pytest.raises(ObjectiveError, match=r"^style_break\.noise_offset is 0\.1, .* set it to 0"):
        FLOW.require(None, 0.1, plain, "style_break.")
    with pytest.raises(ObjectiveError, match=r"^make\.timestep_shift: auto"):
        ddpm.require(None, 0.0, TimestepSampling(shift="auto"), "make.")
    with pytest.raises(BaseModelError, match="prediction type sample is not supported"):
        DdpmSchedule({"prediction_type": "sample"})


def test_min_snr_leaves_noisy_timesteps_alone() -> None:
    schedule = DdpmSchedule({})
    weights = schedule.weigh(5.0, torch.device("cpu"))(torch.tensor([0, 999]))
    snr = float(schedule.scheduler.alphas_cumprod[0] / (1 - schedule.scheduler.alphas_cumprod[0]))
    assert math.isclose(weights[0], 5 / snr, rel_tol=1e-4) and weights[1] == 1
