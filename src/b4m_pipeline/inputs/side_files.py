"""What stands beside pictures: captions (cat.txt, cat.caption, metadata.jsonl), masks (cat.mask.png), attribution.csv."""

import codecs
import csv
import json
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from b4m_pipeline.inputs.listing import ATTRIBUTION, PicturesError, printable
from b4m_pipeline.inputs.params import IngestionParams
from b4m_pipeline.inputs.squares import Square, UnusablePictureError, read_square

logger = logging.getLogger(__name__)

CAPTION_BYTES = 65536
"""So much of a caption file is read, and of a line in a table of captions."""
_FILE_COLUMN = "file_name"
_TEXT_COLUMNS = ("text", "caption")


def read_caption(path: Path) -> str:
    """Text of a caption file, white space collapsed; of a file of more than CAPTION_BYTES its beginning. Raises
    UnusablePictureError with a reason."""
    try:
        with path.open("rb") as handle:
            data = handle.read(CAPTION_BYTES + 1)
        whole = len(data) <= CAPTION_BYTES
        text = codecs.getincrementaldecoder("utf-8-sig")("strict").decode(data[:CAPTION_BYTES], final=whole)
    except UnicodeDecodeError as error:
        raise UnusablePictureError("caption file is not UTF-8 text") from error
    except OSError as error:
        raise UnusablePictureError(f"caption file cannot be read ({error.strerror})") from error
    if "\0" in text:
        raise UnusablePictureError("caption file is not UTF-8 text")
    if not whole:
        logger.warning("%s is longer than %d KiB: the rest of it is not read", path, CAPTION_BYTES // 1024)
    if not (text := one_line(text)):
        raise UnusablePictureError("caption file is empty")
    return text


def one_line(text: str) -> str:
    """Text without control characters, white space collapsed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def read_table(path: Path, pictures: Collection[Path]) -> tuple[dict[Path, str], list[str]]:
    """Captions of `pictures` from a metadata.jsonl or metadata.csv as datasets' "imagefolder" has them, and what of it cannot
    be used, a phrase each."""
    captions: dict[Path, str] = {}
    problems: list[str] = []
    try:
        for number, row in _rows(path):
            if isinstance(row, str):
                problems.append(f"line {number}: {row}")
                continue
            name = row.get(_FILE_COLUMN)
            text = next((row[column] for column in _TEXT_COLUMNS if row.get(column) is not None), None)
            if not isinstance(name, str) or not isinstance(text, str):
                problems.append(f"line {number}: needs {_FILE_COLUMN} and {' or '.join(_TEXT_COLUMNS)}, both texts")
            elif path.parent / name not in pictures:
                problems.append(f"line {number}: names no picture that is here, {name[:80]!r}")
            elif text := one_line(text):
                captions[path.parent / name] = text
    except UnicodeDecodeError:
        problems.append("is not UTF-8 text")
    except (OSError, csv.Error) as error:
        problems.append(f"cannot be read ({error})")
    return captions, problems


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers and rows; what is wrong with a line in place of a row that cannot be read."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        if path.suffix == ".csv":
            reader = csv.DictReader(handle, strict=True)
            yield from ((reader.line_num, row) for row in reader)
            return
        number = 0
        while line := handle.readline(CAPTION_BYTES):
            number += 1
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "is no JSON"
    return row if isinstance(row, dict) else "is no JSON object"


def read_mask(path: Path, square: Square, resolution: int, params: IngestionParams) -> Image.Image:
    """The mask of a picture, cut like it: L, white counts. Raises UnusablePictureError if it is unreadable, black or not of the
    picture's size."""
    try:
        mask = read_square(path, resolution, (0, 0, 0), params.crop, params.max_pixels, params.buckets)
    except UnusablePictureError as error:
        raise UnusablePictureError(f"its mask {path.name}: {error}") from error
    if (mask.width, mask.height) != (square.width, square.height):
        raise UnusablePictureError(
            f"its mask {path.name} is {mask.width} x {mask.height} pixels, the picture {square.width} x {square.height}"
        )
    if (grey := mask.image.convert("L")).getextrema()[1] == 0:
        raise UnusablePictureError(f"its mask {path.name} is black: nothing would count")
    return grey


def read_attribution(folder: Path) -> dict[str, tuple[str, str]]:
    """File -> (licence, source), "" where it says nothing, from the folder's attribution.csv, if it has one. Raises
    PicturesError."""
    path = folder / ATTRIBUTION
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, strict=True))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PicturesError(f"{path} cannot be read as CSV in UTF-8 ({error}). Mend or remove it.") from error
    if rows and not {"file", "licence", "source"} <= set(rows[0]):
        raise PicturesError(f"{path} has the columns {list(rows[0])}, expected file, licence, source.")
    named = [row for row in rows if row["file"]]
    if absent := [printable(row["file"][:80]) for row in named if not os.path.isfile(folder / row["file"])]:
        logger.warning("%s names files that are not there: %s", path, ", ".join(absent))
    return {row["file"]: (row["licence"] or "", row["source"] or "") for row in named}
