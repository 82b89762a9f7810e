"""safetensors files that are the same to the byte for the same content, and readable for whom the umask says.

The library's own `save_file` writes a header in another order each time, into a file for its owner alone.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 8  # bytes: tensors begin at a multiple of it, behind a header that spaces fill up


def save_tensors(
    tensors: "Mapping[str, torch.Tensor]", path: Path, metadata: Mapping[str, str], hash_key: str | None = None
) -> Path:
    """Write `path` as a whole or not at all. hash_key: a further field of the metadata, 0x and the sha256 of all that follows
    the header."""
    raw = save(dict(tensors))
    start = 8 + int.from_bytes(raw[:8], "little")
    payload = memoryview(raw)[start:]
    own = dict(metadata) | ({hash_key: f"0x{hashlib.sha256(payload).hexdigest()}"} if hash_key else {})
    header = json.dumps({"__metadata__": dict(sorted(own.items())), **json.loads(raw[8:start])}).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # its own: two processes may write the same file
    try:
        with partial.open("wb") as handle:
            handle.write(len(header).to_bytes(8, "little") + header)
            handle.write(payload)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
