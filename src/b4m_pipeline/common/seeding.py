"""Randomness that depends on names instead of on call order: what makes runs repeatable and resumable."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(*key: Any) -> int:
    """A 63-bit seed from any sequence of names and numbers (sha256), the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*key: Any) -> "torch.Generator":
    """A private CPU generator for `key`, e.g. (seed, "noise", step). The global RNG is neither read nor moved."""
    import torch  # start-up has no need of it, and this module's other functions neither

    return torch.Generator().manual_seed(derive_seed(*key))


def numpy_generator(*key: Any) -> np.random.Generator:
    """NumPy's counterpart of `torch_generator`."""
    return np.random.default_rng(derive_seed(*key))
