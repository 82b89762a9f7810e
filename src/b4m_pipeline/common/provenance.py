"""What an adapter says about where it came from."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from b4m_pipeline import __version__


@cache
def code_version() -> str:
    """Package version and a digest of its source, so that an edited copy does not pass for the release."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


def digest_of(*parts: Any) -> str:
    """Short sha256 of JSON-serialisable parts, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
