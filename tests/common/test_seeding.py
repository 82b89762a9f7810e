"""Randomness by names: the same on every machine, whatever was drawn before."""

import numpy as np
import torch

from b4m_pipeline.common.seeding import derive_seed, numpy_generator, torch_generator


def test_seeds_are_the_same_on_every_machine():
    """Written down: a change of these makes all earlier trainings and pictures unrepeatable."""
    assert derive_seed(0, "noise", 3) == 6757770607321690014
    assert derive_seed() == 8203414616412130826


def test_every_part_of_a_key_counts_and_so_does_its_place():
    keys = [(0, "noise"), (1, "noise"), (0, "batch"), ("noise", 0), (0, "noise", 0), ("0noise",), (0, "no", "ise")]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("0", "noise") == seeds[0]


def test_generators_draw_by_their_key_and_leave_the_global_ones_alone():
    def draws(*key) -> tuple[list[float], list[float]]:
        return torch.rand(3, generator=torch_generator(*key)).tolist(), numpy_generator(*key).random(3).tolist()

    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = draws(0, "a")
    torch.rand(1, generator=torch_generator(9))
    assert draws(0, "a") == first
    assert all(one != other for one, other in zip(draws(0, "b"), first, strict=True))
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], numbers)
