"""What a training minimises, and for which parameters."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from b4m_pipeline.common.seeding import torch_generator


@dataclass
class Objective:
    """What a loss on some pictures teaches. rows: indices of the training set in one or several strata, (N_i,) each;
    a batch takes from the strata in turn, however many pictures each has."""

    name: str
    parameters: list[torch.nn.Parameter] = field(repr=False)
    rows: list[torch.Tensor]
    batch_size: int
    learning_rate: float
    penalty: Callable[[], torch.Tensor] | None = field(default=None, repr=False)
    """Added to the loss once a step: a scalar with a gradient to the parameters."""

    def batch(self, seed: int, index: int) -> torch.Tensor:
        """The index-th batch (B,) of an endless stream: in each stratum every row comes once an epoch, in a new order."""
        orders: dict[tuple[int, int], torch.Tensor] = {}
        picked = []
        for position in range(index * self.batch_size, (index + 1) * self.batch_size):
            stratum, place = position % len(self.rows), position // len(self.rows)
            rows = self.rows[stratum]
            key = (stratum, place // len(rows))
            if key not in orders:
                orders[key] = torch.randperm(len(rows), generator=torch_generator(seed, self.name, "order", *key))
            picked.append(rows[orders[key][place % len(rows)]])
        return torch.stack(picked)


def parameter_groups(objectives: list[Objective]) -> list[dict]:
    """One group for each objective; a parameter that several share belongs to the first, at one and the same rate."""
    rates: dict[int, float] = {}
    groups: list[dict[str, Any]] = []
    for objective in objectives:
        own = []
        for parameter in objective.parameters:
            known = rates.setdefault(id(parameter), objective.learning_rate)
            if known != objective.learning_rate:
                raise ValueError(f"objective {objective.name} shares parameters with another of a different learning rate")
            if not any(parameter is other for group in groups for other in group["params"]):
                own.append(parameter)
        if own:
            rate = objective.learning_rate
            groups.append({"params": own, "lr": rate, "peak": rate, "name": objective.name})
    return groups
