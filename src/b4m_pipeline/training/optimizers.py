"""Optimizers by name. Those that torch has not come from optional packages."""

from importlib import import_module
from typing import Any

import torch

_OPTIONAL = {"adamw8bit": ("bitsandbytes", "optim.AdamW8bit"), "prodigy": ("prodigyopt", "Prodigy")}


class OptimizerError(ValueError):
    """An optimizer whose package is not installed."""


def make_optimizer(name: str, groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    """adamw | adamw8bit | prodigy for parameter groups with "params" and "lr". Raises OptimizerError if its package is absent.

    Sources: Loshchilov and Hutter 2019 (arXiv 1711.05101), Dettmers et al. 2022 (arXiv 2110.02861), Mishchenko and Defazio 2024
    (arXiv 2306.06101).
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
    package, path = _OPTIONAL[name]
    try:
        found: Any = import_module(package)
    except ImportError as error:
        raise OptimizerError(
            f"optimizer: {name} needs the package {package}, which is not installed: pip install {package}, or "
            'pip install -e ".[optimizers]", or use optimizer: adamw'
        ) from error
    for part in path.split("."):
        found = getattr(found, part)
    return found(groups, weight_decay=weight_decay)


def check_optimizer(name: str) -> None:
    """Raise OptimizerError if the optimizer's package is absent."""
    make_optimizer(name, [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}], 0.0)
