"""Folders of pictures -> checked squares, a manifest, and a quarantine that says what was left out and why."""

import itertools
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.common.progress import progress
from b4m_pipeline.inputs.listing import (
    ATTRIBUTION,
    Listing,
    PicturesError,
    link_targets,
    list_files,
    printable,
    require_regular,
)
from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams, IngestionParams
from b4m_pipeline.inputs.side_files import read_attribution, read_caption, read_mask, read_table
from b4m_pipeline.inputs.squares import EXTENSIONS, Square, UnusablePictureError, read_square

logger = logging.getLogger(__name__)

_PHOTOGRAPHS_FROM = 256  # pixels a side; smaller base models, such as the embedded one, know drawings alone
_MUCH_ENLARGED = 2.0

MANIFEST_COLUMNS = (
    "picture", "role", "concept", "token", "noun", "file", "sha256", "width", "height", "licence", "source",
    "near_duplicate_of",
)  # fmt: skip
QUARANTINE_COLUMNS = ("role", "concept", "file", "reason")

Picture = Image.Image | Callable[[], Image.Image]


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
    listing, targets = list_files(folder.path), link_targets(folder.path, params.links_into)
    attribution = _read_attribution(folder, targets)
    rows: list[dict] = []
    quarantine: list[dict] = []
    keys: set[str] = set()
    read: list[Square] = []

    def put_aside(path: Path, reason: str) -> None:
        name = _name(path, folder)
        quarantine.append({"role": folder.role, "concept": folder.name, "file": name, "reason": printable(reason)})
        logger.warning("%s: %s is left out: %s", folder, name, printable(reason))

    for path, reason in listing.unusable:
        put_aside(path, reason)
    texts = _captions(listing, targets, put_aside)
    for path in progress(listing.pictures, f"reading {folder.name}", len(listing.pictures)):
        try:
            require_regular(path, targets)
            square = read_square(path, resolution, params.background, params.crop, params.max_pixels, params.buckets)
            _require_large_enough(square, params.max_enlargement)
            mask = square.mask
            if beside := listing.masks.get(path):
                require_regular(beside, targets)
                mask = read_mask(beside, square, resolution, params)
        except UnusablePictureError as error:
            put_aside(path, str(error))
            continue
        if square.remark:
            logger.warning("%s: %s: %s", folder, _name(path, folder), printable(square.remark))
        read.append(square)
        licence, source = attribution.get(path.relative_to(folder.path).as_posix(), ("", ""))
        rows.append({
            "picture": _unique_key(f"{folder.role}/{folder.name}/", _name(path, folder), keys),
            "role": folder.role, "concept": folder.name, "token": folder.token, "noun": folder.noun,
            "file": _name(path, folder), "sha256": square.sha256, "width": square.width, "height": square.height,
            "licence": licence or folder.licence, "source": source or folder.source,
            "sidecar": texts.get(path, ""), "square": _masked(square.image, mask),
        })  # fmt: skip
    _require_some(folder, listing, rows, quarantine)
    _mark_near_duplicates(rows, params.near_duplicate_bits)
    logger.log(
        logging.INFO if quarantine or listing.others else logging.DEBUG,  # the rest is in the stage's own line
        "%s: %d pictures from %s, %d files left out, %d of other programs",
        *(folder, len(rows), folder.path, len(quarantine), listing.others),
    )
    _warn_of_kinds(folder, resolution, read)
    return rows, quarantine


def _name(path: Path, folder: Folder) -> str:
    return printable(path.relative_to(folder.path).as_posix())


def _read_attribution(folder: Folder, targets: list[Path]) -> dict[str, tuple[str, str]]:
    """See `read_attribution`."""
    try:
        if os.path.lexists(folder.path / ATTRIBUTION):
            require_regular(folder.path / ATTRIBUTION, targets)
        return read_attribution(folder.path)
    except (UnusablePictureError, PicturesError) as error:
        raise PicturesError(f"{folder}: {error}") from error


def _captions(listing: Listing, targets: list[Path], put_aside: Callable[[Path, str], None]) -> dict[Path, str]:
    """Text of each picture that has one: from the file beside it, otherwise from a table of captions."""
    texts: dict[Path, str] = {}
    pictures = set(listing.pictures)
    for table in listing.tables:
        try:
            require_regular(table, targets)
            found, problems = read_table(table, pictures)
        except UnusablePictureError as error:
            put_aside(table, str(error))
            continue
        texts |= found
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            put_aside(table, f"{'; '.join(problems[:3])}{more}; its other {len(found)} captions are used")
    for picture, file in listing.captions.items():
        try:
            require_regular(file, targets)
            texts[picture] = read_caption(file)
        except UnusablePictureError as error:
            put_aside(file, f"{error}; the picture itself is used")
    return texts


def _require_large_enough(square: Square, most: float | None) -> None:
    if most is not None and square.enlargement > most:
        raise UnusablePictureError(
            f"{square.width} x {square.height} pixels would be enlarged {square.enlargement:.1f} times, more than "
            f"ingestion.max_enlargement = {most:g}"
        )


def _require_some(folder: Folder, listing: Listing, rows: list[dict], quarantine: list[dict]) -> None:
    """Raise PicturesError if nothing of the folder can be used."""
    if rows:
        return
    reasons = "; ".join(f"{row['file']}: {row['reason']}" for row in quarantine[:3])
    if not listing.pictures:
        there = f" It has: {reasons}." if reasons else ""
        raise PicturesError(
            f"{folder}: {folder.path} holds no pictures ({', '.join(EXTENSIONS)}).{there} "
            "Put some there or give another folder."
        )
    raise PicturesError(
        f"{folder}: none of the {len(listing.pictures)} pictures in {folder.path} can be used ({reasons}). "
        "Mend or replace them."
    )


def _warn_of_kinds(folder: Folder, resolution: int, squares: list[Square]) -> None:
    """Say how many pictures are photographs that the base model cannot draw, and how many are much enlarged."""
    photographs = sum(square.camera for square in squares)
    if photographs and resolution < _PHOTOGRAPHS_FROM:
        logger.warning("%s: %d photographs; a base model of %d pixels draws icons of them", folder, photographs, resolution)
    if small := [square for square in squares if square.enlargement > _MUCH_ENLARGED]:
        least = max(small, key=lambda square: square.enlargement)
        logger.warning(
            "%s: %d of %d pictures are enlarged more than twice and will be blurred (one has %d x %d pixels for %d): use "
            "larger ones, or leave such pictures out with ingestion.max_enlargement=2",
            *(folder, len(small), len(squares), least.width, least.height, resolution),
        )


def _masked(image: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The RGB square with its mask as alpha channel; PNG keeps the colours under it."""
    if mask is None:
        return image
    masked = image.copy()
    masked.putalpha(mask)
    return masked


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
