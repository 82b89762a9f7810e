"""Files that are written as a whole or not at all: under a name of the writer's own first, then under theirs in one move."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file: Path, sole: bool = False) -> Iterator[Path]:
    """The path to write to, in the same folder, which is made. At the end it replaces `file`; after an error it is removed and
    `file` is as it was. Several threads and processes may write the same file: the last one's stays, unmixed. sole: a lock sees
    to it that there is but one, so the path is always the same, and large files that killed processes left do not add up."""
    file.parent.mkdir(parents=True, exist_ok=True)
    own = file.with_name(f"{file.name}.partial" if sole else f".{uuid.uuid4().hex}.partial")
    try:
        yield own
        own.replace(file)
    except OSError as error:  # of a full disk, for one, which names the writer's own file or none
        if error.errno and error.filename in (None, str(own)):
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        own.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Replace a text file, in UTF-8."""
    with whole_file(file) as own:
        own.write_text(text, encoding="utf-8")
