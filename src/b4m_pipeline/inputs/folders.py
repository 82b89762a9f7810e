"""Folders of pictures -> checked squares, a manifest, and a quarantine that says what was left out and why."""

import csv
import itertools
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams, IngestionParams
from b4m_pipeline.inputs.squares import Square, UnusablePictureError, read_square

logger = logging.getLogger(__name__)

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
_CONVERT_FIRST = (".heic", ".heif", ".svg", ".psd", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw")
ATTRIBUTION = "attribution.csv"
MASK = ".mask.png"
"""Ending of the file that says where a picture counts: cat.mask.png beside cat.jpg."""
_SIDECAR_BYTES = 65536
_PHOTOGRAPHS_FROM = 256  # pixels a side; smaller base models, such as the embedded one, know drawings alone
_ABOUT = ("readme", "license", "licence", "attribution", "notice", "credits")  # texts about a folder, no picture's

MANIFEST_COLUMNS = (
    "picture", "role", "concept", "token", "noun", "file", "sha256", "width", "height", "licence", "source",
    "near_duplicate_of",
)  # fmt: skip
QUARANTINE_COLUMNS = ("role", "concept", "file", "reason")

Picture = Image.Image | Callable[[], Image.Image]


class PicturesError(ValueError):
    """The folders of pictures cannot be trained on; the message says which one and what to do."""


@dataclass(frozen=True)
class Folder:
    """The pictures of one concept in one role: content, style, counterpart_content, counterpart_style or union."""

    role: str
    name: str
    token: str
    noun: str
    path: Path
    parameter: str
    """What to change in the parameters if something is wrong here."""
    licence: str = "unknown"
    source: str = "unknown"

    def __str__(self) -> str:
        return f"{self.role.replace('_', ' ')} {self.name!r} ({self.parameter})"


@dataclass
class Checked:
    """squares by key "<role>/<concept>/<stem>", RGB, or RGBA with the mask as alpha; manifest, a row for each, has
    MANIFEST_COLUMNS and `sidecar` (the text file's content or ""); quarantine has QUARANTINE_COLUMNS."""

    squares: dict[str, Image.Image] = field(repr=False)
    manifest: pd.DataFrame = field(repr=False)
    quarantine: pd.DataFrame = field(repr=False)


def load_picture(picture: Picture) -> Image.Image:
    """An RGB picture that may come as a function that reads it (Kedro's partitions), without its mask."""
    image = picture if isinstance(picture, Image.Image) else picture()
    return image.convert("RGB") if image.mode == "RGBA" else image


def list_folders(
    content: ConceptParams, style: ConceptParams, counterparts: CounterpartParams, union_path: str | None = None
) -> list[Folder]:
    """Every folder that a run reads. Raises PicturesError if two concepts share a name or a token, or if a folder
    lies in another."""
    concepts = [("content", content, "content"), ("style", style, "style")]
    for kind in ("contents", "styles"):
        role = f"counterpart_{kind.removesuffix('s')}"
        for index, concept in enumerate(getattr(counterparts, kind)):
            concepts.append((role, concept, f"counterparts.{kind}[{index}]"))
    folders = [_folder(role, concept, f"{parameter}.path") for role, concept, parameter in concepts]
    union = []
    if union_path is not None:
        path, name = Path(union_path).expanduser(), f"{content.name}-{style.name}"
        union = [Folder("union", name, content.token, content.noun, path, "make.union_path")]
    _require_apart(folders, union)
    return [*folders, *union]


def _folder(role: str, concept: ConceptParams, parameter: str) -> Folder:
    path = Path(concept.path).expanduser()
    return Folder(role, concept.name, concept.token, concept.noun, path, parameter, concept.licence, concept.source)


def _require_apart(folders: list[Folder], union: list[Folder]) -> None:
    """Raise PicturesError if two concepts share a name or a token, or if a folder, those of the union included, is another one
    or lies in it."""
    for what, value in {
        "name": lambda folder: folder.name.casefold(),
        "token": lambda folder: folder.token.casefold(),  # CLIP's tokenizers know no capitals
    }.items():
        seen: dict[str, Folder] = {}
        for folder in folders:
            first = seen.setdefault(value(folder), folder)
            if first is not folder:
                raise PicturesError(f"{first} and {folder} have the same {what} ({getattr(folder, what)}): give each its own.")
    for first, second in itertools.combinations([*folders, *union], 2):
        outer, inner = sorted((first, second), key=lambda folder: len(os.path.realpath(folder.path)))
        if Path(os.path.realpath(inner.path)).is_relative_to(os.path.realpath(outer.path)):
            raise PicturesError(
                f"{inner} has its pictures in {inner.path}, which is in the folder of {outer} ({outer.path}): each would be "
                "trained on as both. Give each a folder of its own."
            )


def list_concept_folders(kind: str, concept: ConceptParams, partners: list[ConceptParams]) -> list[Folder]:
    """The folders of one content or style, and of the other kind's counterparts that its half is trained against. Raises
    PicturesError as `list_folders` does."""
    other = "style" if kind == "content" else "content"
    folders = [_folder(kind, concept, f"{kind} {concept.name}")]
    folders += [_folder(f"counterpart_{other}", c, f"counterparts.{other}s[{i}].path") for i, c in enumerate(partners)]
    _require_apart(folders, [])
    return folders


def check_folders(folders: Iterable[Folder], resolution: int, params: IngestionParams) -> Checked:
    """Read all folders -> squares of `resolution` pixels (with `ingestion.buckets`, rectangles of at most as many), manifest,
    quarantine.

    Raises PicturesError if the buckets' step does not divide the resolution, if a folder is missing, is a file, holds no
    pictures or none that can be read, or if its attribution.csv is malformed.
    """
    if params.buckets and resolution % params.buckets.step:
        raise PicturesError(
            f"ingestion.buckets.step {params.buckets.step} does not divide base_model.resolution {resolution}: "
            "change one of them"
        )
    for folder in (folders := list(folders)):
        require_folder(folder)  # all of them before the first picture is decoded
    squares: dict[str, Image.Image] = {}
    rows, quarantine = [], []
    for folder in folders:
        good, bad = _check_folder(folder, resolution, params)
        squares |= {row["picture"]: row.pop("square") for row in good}
        rows += good
        quarantine += bad
    manifest = pd.DataFrame(rows, columns=[*MANIFEST_COLUMNS, "sidecar"])
    return Checked(squares, manifest, pd.DataFrame(quarantine, columns=list(QUARANTINE_COLUMNS)))


def require_folder(folder: Folder) -> None:
    """Raise PicturesError if there is no such folder."""
    where = f"{folder.path} (that is {folder.path.absolute()})" if not folder.path.is_absolute() else str(folder.path)
    if not folder.path.exists():
        raise PicturesError(f"{folder}: there is no folder {where}. Give the folder that holds its pictures.")
    if not folder.path.is_dir():
        raise PicturesError(f"{folder}: {where} is a file. Give the folder that holds its pictures.")


def _check_folder(folder: Folder, resolution: int, params: IngestionParams) -> tuple[list[dict], list[dict]]:
    """One folder's manifest rows (each with its `square`) and quarantine rows."""
    attribution = _read_attribution(folder)
    rows: list[dict] = []
    quarantine: list[dict] = []
    keys: set[str] = set()
    photographs = 0

    def put_aside(name: str, reason: str) -> None:
        quarantine.append({"role": folder.role, "concept": folder.name, "file": name, "reason": reason})
        logger.warning("%s: %s is left out: %s", folder, name, reason)

    files = list(_walk(folder.path))
    for name in _unclaimed(folder.path, files):
        put_aside(name, "belongs to no picture here: a mask is called NAME.mask.png, a caption NAME.txt, beside NAME.jpg")
    for path in tqdm(files, desc=f"{folder.role} {folder.name}", delay=2, leave=False):
        name = _text(path.relative_to(folder.path).as_posix())
        try:
            _require_inside(path, folder.path)
            square = read_square(path, resolution, params.background, params.crop, params.max_pixels, params.buckets)
            mask = _read_mask(path, square, resolution, folder.path, params) or square.mask
        except UnusablePictureError as error:
            put_aside(name, str(error))
            continue
        try:
            sidecar = _read_sidecar(path.with_suffix(".txt"), folder.path)
        except UnusablePictureError as error:
            sidecar = ""
            put_aside(str(Path(name).with_suffix(".txt")), f"{error}; the picture itself is used")
        photographs += square.camera
        licence, source = attribution.get(name, (folder.licence, folder.source))
        rows.append({
            "picture": _unique_key(f"{folder.role}/{folder.name}/", name, keys),
            "role": folder.role, "concept": folder.name, "token": folder.token, "noun": folder.noun, "file": name,
            "sha256": square.sha256, "width": square.width, "height": square.height,
            "licence": licence, "source": source, "sidecar": sidecar, "square": _masked(square.image, mask),
        })  # fmt: skip
    if not files:
        raise PicturesError(
            f"{folder}: {folder.path} holds no pictures ({', '.join(EXTENSIONS)}). Put some there or give another folder."
        )
    if not rows:
        reasons = "; ".join(f"{row['file']}: {row['reason']}" for row in quarantine[:3])
        raise PicturesError(
            f"{folder}: none of the {len(files)} pictures in {folder.path} can be used ({reasons}). Mend or replace them."
        )
    _mark_near_duplicates(rows, params.near_duplicate_bits)
    logger.info("%s: %d pictures from %s, %d left out", folder, len(rows), folder.path, len(files) - len(rows))
    if photographs and resolution < _PHOTOGRAPHS_FROM:
        logger.warning("%s: %d photographs; a base model of %d pixels draws icons of them", folder, photographs, resolution)
    return rows, quarantine


def _walk(root: Path) -> Iterator[Path]:
    """Picture files below root, sorted, without hidden ones; links to folders are listed, not followed."""

    def refuse(error: OSError) -> None:
        raise PicturesError(f"{error.filename} cannot be listed ({error.strerror}): make it readable or move it away.")

    found = []
    for parent, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        pictures = [name for name in files if name.lower().endswith((*EXTENSIONS, *_CONVERT_FIRST))]
        pictures = [name for name in pictures if not name.lower().endswith(MASK)]
        found += [Path(parent, name) for name in [*linked, *pictures] if not name.startswith(".")]
    return iter(sorted(found, key=lambda path: path.as_posix()))


def _unclaimed(root: Path, pictures: list[Path]) -> list[str]:
    """Masks and texts below root that are no picture's: most likely a slip in a name."""
    claimed = {path.with_suffix(".txt") for path in pictures} | {path.with_name(path.stem + MASK) for path in pictures}
    found = [path for folder in {path.parent for path in pictures} for path in folder.iterdir() if path not in claimed]
    lost = [path for path in found if path.name.lower().endswith((MASK, ".txt")) and path.stem.lower() not in _ABOUT]
    return sorted(_text(path.relative_to(root).as_posix()) for path in lost if not path.name.startswith("."))


def _require_inside(path: Path, root: Path) -> None:
    """Refuse what is no ordinary picture file of this folder. Raises UnusablePictureError."""
    real = Path(os.path.realpath(path))
    if path.is_symlink() and not real.is_relative_to(os.path.realpath(root)):
        raise UnusablePictureError("a link that leads out of the folder: copy the file itself")
    if real.is_dir():
        raise UnusablePictureError("a link to a folder: not followed")
    if not real.is_file():
        raise UnusablePictureError("no regular file")
    if path.suffix.lower() in _CONVERT_FIRST:
        raise UnusablePictureError(f"format {path.suffix} is not supported: convert it to PNG or JPEG")


def _read_mask(path: Path, square: Square, resolution: int, root: Path, params: IngestionParams) -> Image.Image | None:
    """The mask beside a picture (NAME.mask.png), cut like it: L, white counts. None if there is none. Raises
    UnusablePictureError if it is unreadable or not of the picture's size."""
    beside = path.with_name(path.stem + MASK)
    if not beside.is_file():
        return None
    _require_inside(beside, root)
    try:
        mask = read_square(beside, resolution, (0, 0, 0), params.crop, params.max_pixels, params.buckets)
    except UnusablePictureError as error:
        raise UnusablePictureError(f"its mask {beside.name}: {error}") from error
    if (mask.width, mask.height) != (square.width, square.height):
        raise UnusablePictureError(
            f"its mask {beside.name} is {mask.width} x {mask.height} pixels, the picture {square.width} x {square.height}"
        )
    if (grey := mask.image.convert("L")).getextrema()[1] == 0:
        raise UnusablePictureError(f"its mask {beside.name} is black: nothing would count")
    return grey


def _masked(image: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The RGB square with its mask as alpha channel; PNG keeps the colours under it."""
    if mask is None:
        return image
    masked = image.copy()
    masked.putalpha(mask)
    return masked


def _read_sidecar(path: Path, root: Path) -> str:
    """Text of a caption file, white space collapsed; "" if there is none. Raises UnusablePictureError with a reason."""
    if not path.is_file():
        return ""
    _require_inside(path, root)
    try:
        with path.open("rb") as handle:
            text = handle.read(_SIDECAR_BYTES).decode("utf-8-sig", errors="strict")
    except UnicodeDecodeError as error:
        raise UnusablePictureError("caption file is not UTF-8 text") from error
    except OSError as error:
        raise UnusablePictureError(f"caption file cannot be read ({error.strerror})") from error
    if "\0" in text:
        raise UnusablePictureError("caption file is not UTF-8 text")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not text:
        raise UnusablePictureError("caption file is empty")
    return text


def _read_attribution(folder: Folder) -> dict[str, tuple[str, str]]:
    """File -> (licence, source) from the folder's attribution.csv, if it has one."""
    path = folder.path / ATTRIBUTION
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle, strict=True))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PicturesError(f"{folder}: {path} cannot be read as CSV in UTF-8 ({error}). Mend or remove it.") from error
    if rows and not {"file", "licence", "source"} <= set(rows[0]):
        raise PicturesError(f"{folder}: {path} has the columns {list(rows[0])}, expected file, licence, source.")
    if absent := [row["file"] for row in rows if not (folder.path / (row["file"] or "")).is_file()]:
        logger.warning("%s: %s names files that are not there: %s", folder, path, ", ".join(map(str, absent)))
    return {row["file"]: (row["licence"] or folder.licence, row["source"] or folder.source) for row in rows}


def _text(name: str) -> str:
    """A file name that any table can hold: bytes that are no UTF-8 are written out."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def _unique_key(prefix: str, name: str, taken: set[str]) -> str:
    """A key that is a safe file name everywhere, and differs from those in `taken`, to which it is added."""
    stem = unicodedata.normalize("NFKD", name.rsplit(".", 1)[0]).encode("ascii", "ignore").decode()
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-")[:80] or "picture"
    key, number = stem, 1
    while key.casefold() in taken:
        number += 1
        key = f"{stem}-{number}"
    taken.add(key.casefold())
    return prefix + key


def _mark_near_duplicates(rows: list[dict], bits: int) -> None:
    """Set `near_duplicate_of`: the first earlier picture whose perceptual hash differs in at most `bits`, or ""."""
    import imagehash

    hashes = np.stack([imagehash.phash(row["square"]).hash.ravel() for row in rows])  # (N, 64) bool
    for index, row in enumerate(rows):
        close = np.flatnonzero((hashes[:index] != hashes[index]).sum(axis=1) <= bits)
        row["near_duplicate_of"] = rows[close[0]]["picture"] if len(close) else ""
        if len(close):
            logger.warning("%s looks like %s", row["picture"], row["near_duplicate_of"])
