"""safetensors files: what they hold, and such as are the same to the byte for the same content, and readable for whom the umask
says. GGUF files, whose weights are quantised: what they hold.

The library's own `save_file` writes a header in another order each time, into a file for its owner alone.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save

from b4m_pipeline.common.whole_files import whole_file

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ALIGNMENT = 8  # bytes: tensors begin at a multiple of it, behind a header that spaces fill up


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str], hash_key: str | None = None
) -> Path:
    """Write `path` as a whole or not at all. hash_key: a further field of the metadata, 0x and the sha256 of all that follows
    the header."""
    raw = save(dict(tensors))
    start = 8 + int.from_bytes(raw[:8], "little")
    payload = memoryview(raw)[start:]
    own = dict(metadata) | ({hash_key: f"0x{hashlib.sha256(payload).hexdigest()}"} if hash_key else {})
    header = json.dumps({"__metadata__": dict(sorted(own.items())), **json.loads(raw[8:start])}).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    with whole_file(path) as partial, partial.open("wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
        handle.write(payload)
    return path


class Stored(NamedTuple):
    """Weights in files: the number format that most of them have, and how many there are."""

    dtype: torch.dtype
    parameters: int


def stored_in(files: Iterable[Path], counts: Callable[[str], bool] = lambda name: True) -> Stored | None:
    """What safetensors files hold, by their headers alone. counts: which names of tensors are meant. None if there are no such
    weights, or if most are no floating-point numbers."""
    found: Counter[str] = Counter()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in filter(counts, file.keys()):
                part = file.get_slice(name)
                found[part.get_dtype()] += math.prod(part.get_shape())
    most = max(found, key=found.__getitem__, default="")
    return Stored(_DTYPES[most], found.total()) if most in _DTYPES else None


class Held(NamedTuple):
    """A tensor in a file. shape: of the weights, also where they are quantised; format: safetensors' or GGUF's name of its
    numbers; size: its bytes."""

    shape: tuple[int, ...]
    format: str
    size: int


def tensors_in(path: Path) -> dict[str, Held]:
    """What a safetensors or GGUF file holds, by its header alone. Raises SafetensorError or ValueError for what is no such
    file, ImportError if the package gguf is absent."""
    if path.suffix.lower() == ".gguf":
        from gguf import GGUFReader

        read = GGUFReader(path).tensors  # sizes from the last axis to the first
        return {t.name: Held(tuple(map(int, reversed(t.shape))), t.tensor_type.name, int(t.n_bytes)) for t in read}
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}
        formats = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    return {name: Held(shape, kind, math.prod(shape) * _bits(kind) // 8) for name, (shape, kind) in formats.items()}


def _bits(kind: str) -> int:
    """Of a number in a safetensors file: BF16, F8_E4M3, BOOL."""
    return int(found[0]) if (found := re.findall(r"\d+", kind)) else 8
