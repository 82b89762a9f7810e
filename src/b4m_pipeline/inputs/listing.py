"""What lies in a folder: pictures, captions and masks beside them, other programs' files, and what is none of these."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from b4m_pipeline.inputs.squares import EXTENSIONS, UnusablePictureError, picture_format

ATTRIBUTION = "attribution.csv"
TABLES = ("metadata.jsonl", "metadata.csv")
"""Captions of many pictures in one file, as the library datasets reads them ("imagefolder")."""
MASKS = (".mask", "-masklabel")
"""Endings of a mask's name before .png: ours, OneTrainer's. It says where a picture counts: cat.mask.png beside cat.jpg."""
CAPTIONS = (".txt", ".caption")
"""Endings of the text beside a picture, the first that is there is read; .caption is kohya's."""
_CONVERT_FIRST = (".svg", ".psd", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw")
_ABOUT = ("readme", "license", "licence", "copying", "attribution", "notice", "credits")  # texts about a folder
_ABOUT_ENDINGS = ("", ".txt", ".md", ".rst", ".csv", ".html", ".pdf")
_OTHERS_FOLDERS = (
    *("@eadir", "#recycle", "@recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
)  # of Synology, QNAP, macOS, Windows, ext4, Python
_OTHERS_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "zbthumbnail.info")
_OTHERS_BESIDE = (".json", ".xmp", ".aae", ".thm", ".pp3", ".dop", ".npz", ".safetensors", "-condlabel.png")
"""What photo programs, downloaders and trainers (kohya's caches, OneTrainer) write beside cat.jpg: cat.xmp, cat_sdxl.npz."""


def is_mask(name: str) -> bool:
    """Whether a file of this name is a mask."""
    file = Path(name.lower())
    return file.suffix in EXTENSIONS and file.stem.endswith(MASKS)


class PicturesError(ValueError):
    """The folders of pictures cannot be trained on; the message says which one and what to do."""


@dataclass
class Listing:
    """All files of a folder but hidden ones. captions, masks: the file beside each picture that has one; tables: those of
    TABLES; unusable: files and why each is not used; others: how many files and folders are other programs'."""

    pictures: list[Path] = field(default_factory=list)
    captions: dict[Path, Path] = field(default_factory=dict)
    masks: dict[Path, Path] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    unusable: list[tuple[Path, str]] = field(default_factory=list)
    others: int = 0


def list_files(root: Path) -> Listing:
    """Sort what lies in `root` and its subfolders. Links to folders are not followed. Raises PicturesError if one cannot be
    listed."""
    listing = Listing()
    files = sorted(_walk(root, listing), key=lambda path: path.as_posix())
    listing.pictures = [file for file in files if _is_picture(file)]
    beside: dict[tuple[Path, str], list[Path]] = {}
    for picture in listing.pictures:
        beside.setdefault((picture.parent, _stem(picture)), []).append(picture)
    taken = set(listing.pictures)
    for file in sorted((file for file in files if file not in taken), key=_rank):
        _sort(file, root, beside, listing)
    return listing


def link_targets(root: Path, links_into: Sequence[str]) -> list[Path]:
    """The folders that links in `root` may lead to: itself, those that the user names, and in a snapshot of the Hub's cache
    this repository's blobs."""
    real = Path(os.path.realpath(root))
    found = [real, *(Path(os.path.realpath(Path(folder).expanduser())) for folder in links_into)]
    for snapshots in real.parents:
        if snapshots.name == "snapshots" and "--" in snapshots.parent.name:
            found.append(snapshots.with_name("blobs"))
    return found


def require_regular(path: Path, targets: Sequence[Path]) -> None:
    """Refuse what is no ordinary file in one of the folders `targets` (see `link_targets`). Raises UnusablePictureError."""
    real = Path(os.path.realpath(path))
    if path.is_symlink() and not any(real.is_relative_to(target) for target in targets):
        raise UnusablePictureError(
            f"a link that leads out of the folder, to {real}: copy the file, or name its folder in ingestion.links_into"
        )
    if not os.path.isfile(real):
        raise UnusablePictureError("no regular file")


def printable(name: str) -> str:
    """A file name that any table and log can hold: bytes that are no UTF-8, line breaks and the like are written out."""
    text = os.fsencode(name).decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _walk(root: Path, listing: Listing) -> Iterator[Path]:
    """Files below root but hidden ones; what is no file or other programs' goes to the listing."""

    def refuse(error: OSError) -> None:
        raise PicturesError(f"{error.filename} cannot be listed ({error.strerror}): make it readable or move it away.")

    for parent, folders, files in os.walk(root, onerror=refuse):
        shown = [name for name in folders if not name.startswith(".")]
        linked = [name for name in shown if os.path.islink(os.path.join(parent, name))]
        listing.unusable += [(Path(parent, name), "a link to a folder: not followed") for name in linked]
        folders[:] = [name for name in shown if name.lower() not in _OTHERS_FOLDERS and name not in linked]
        listing.others += len(shown) - len(linked) - len(folders)
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _is_picture(file: Path) -> bool:
    """Whether a file is to be read as a picture: by its ending, or by what is in it if it has none."""
    if file.suffix:
        own = file.suffix.lower() in EXTENSIONS
        return own and not file.stem.lower().endswith(MASKS) and not file.name.lower().endswith(_OTHERS_BESIDE)
    return file.name.lower() not in _ABOUT and os.path.isfile(file) and picture_format(file) is not None


def _stem(picture: Path) -> str:
    return picture.stem if picture.suffix.lower() in EXTENSIONS else picture.name


def _rank(file: Path) -> tuple[int, str]:
    """Order in which side files are taken: of two captions or masks of a picture, the first is used."""
    name = file.name.lower()
    ranks = [*CAPTIONS, *MASKS]
    own = file.stem.lower() if file.suffix.lower() in EXTENSIONS else name
    return next((place for place, ending in enumerate(ranks) if own.endswith(ending)), len(ranks)), file.as_posix()


def _sort(file: Path, root: Path, beside: dict[tuple[Path, str], list[Path]], listing: Listing) -> None:
    """Enter a file that is no picture into the listing. beside: pictures by folder and stem."""
    name, ending = file.name.lower(), file.suffix.lower()
    mask = next((mark for mark in MASKS if ending in EXTENSIONS and file.stem.lower().endswith(mark)), None)
    if mask or ending in CAPTIONS:
        pictures = beside.get((file.parent, file.stem.removesuffix(file.stem[-len(mask) :]) if mask else file.stem), [])
        known = listing.masks if mask else listing.captions
        for picture in pictures:
            if (first := known.setdefault(picture, file)) is not file:
                return listing.unusable.append((file, f"{first.name} beside it is read"))
        if pictures:
            return None
    if name in TABLES:
        listing.tables.append(file)
    elif file.stem.lower() in _ABOUT and ending in _ABOUT_ENDINGS and (name != ATTRIBUTION or file.parent == root):
        pass  # read where it is one of pictures, a text for people otherwise
    elif name in _OTHERS_FILES or (name.endswith(_OTHERS_BESIDE) and _begins_like_a_picture(file, beside)):
        listing.others += 1
    else:
        listing.unusable.append((file, _reason(file)))
    return None


def _begins_like_a_picture(file: Path, beside: dict[tuple[Path, str], list[Path]]) -> bool:
    """Whether a name is a picture's with something behind it: cat.jpg.json, cat_0512x0768_sdxl.npz."""
    name = file.name
    return any((file.parent, name[:end]) in beside for end in range(1, len(name)) if name[end] in "._-(")


def _reason(file: Path) -> str:
    """Why a file that is nobody's is not used."""
    ending = file.suffix.lower()
    if ending in (*CAPTIONS, *EXTENSIONS):
        return "belongs to no picture here: a mask is called NAME.mask.png, a caption NAME.txt or NAME.caption, beside NAME.jpg"
    if file.name.lower() == ATTRIBUTION:
        return "is read from the folder itself alone, not from folders in it"
    if ending in _CONVERT_FIRST:
        return f"format {ending} is not supported: convert it to PNG or JPEG"
    if not os.path.isfile(file):
        return "no regular file"
    if kind := picture_format(file):
        return f"a picture ({kind}) whose ending {ending} is no picture's: rename it if it is to be used"
    return f"no picture, and no other file that is known here: its ending is {ending or 'missing'}"
