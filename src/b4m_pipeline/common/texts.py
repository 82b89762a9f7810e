"""Texts that a parameter names: a file of prompts, a table."""

from pathlib import Path

MOST_BYTES = 10_000_000


def text_of(path: Path) -> str:
    """The whole of a UTF-8 text. Raises UnicodeDecodeError, and OSError also for what has no end or would not be a text of this
    size: a device, a pipe, a file of more than MOST_BYTES."""
    size = path.stat().st_size
    if not path.is_file():
        raise OSError("it is no regular file")
    if size > MOST_BYTES:
        raise OSError(f"it has {size / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f} are read")
    return path.read_text(encoding="utf-8-sig")
