"""Which folders the page may read and write: the project's, and those that were named at start."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from b4m_pipeline.inputs.listing import is_mask
from b4m_pipeline.inputs.squares import EXTENSIONS

OWN = "data/01_raw/own"
"""Where uploaded pictures go, a folder for each concept."""
OUTPUT = "data/07_model_output/studio"
"""Where kept pictures, exported files and the records of runs are."""
MOST_PICTURES = 500
"""Pictures of a concept that the page shows; a break needs a dozen."""
_SHOWN_FOLDERS = 400
_DEPTH = 4
_NOT_OFFERED = {"node_modules", "truth"}
"""Of the project's raw data: packages, and the drawings that evaluation compares with."""


class PlacesError(ValueError):
    """A folder or a file name that is not for this page to read or write."""


@dataclass(frozen=True)
class Places:
    """project: its folder; allowed: further folders, from the command line."""

    project: Path
    allowed: Sequence[Path] = ()

    @property
    def output(self) -> Path:
        return self.project / OUTPUT

    def folder(self, given: str) -> Path:
        """A folder of pictures, given as a path in full or from the project. Raises PlacesError if it is not there or leads out
        of the project's raw data and the allowed folders, by links too."""
        path = Path(os.path.realpath(self.project / Path(given).expanduser()))
        if not any(path.is_relative_to(os.path.realpath(root)) for root in self._roots()):
            raise PlacesError(
                f"{given} is neither in this project's data/01_raw nor in a folder that the studio was started with: copy the "
                "pictures there, or start it with --allow FOLDER"
            )
        if not path.is_dir():
            raise PlacesError(f"There is no folder {given}")
        return path

    def name_of(self, folder: Path) -> str:
        """A folder as parameters name it: from the project, where it lies there."""
        project = Path(os.path.realpath(self.project))
        return folder.relative_to(project).as_posix() if folder.is_relative_to(project) else folder.as_posix()

    def folders(self) -> list[dict[str, str | int]]:
        """Folders that hold pictures themselves, with their number, by path."""
        found: list[dict[str, str | int]] = []
        for root in self._roots():
            for parent, pictures in _with_pictures(Path(os.path.realpath(root))):
                found.append({"path": self.name_of(parent), "pictures": pictures})
                if len(found) == _SHOWN_FOLDERS:
                    return found
        return found

    def _roots(self) -> list[Path]:
        return [self.project / "data/01_raw", *self.allowed]


def _with_pictures(root: Path) -> Iterator[tuple[Path, int]]:
    for parent, folders, files in os.walk(root):
        deep = len(Path(parent).relative_to(root).parts) >= _DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith(".") and name not in _NOT_OFFERED)
        if pictures := sum(map(is_picture, files)):
            yield Path(parent), pictures


def count_pictures(folder: Path) -> int:
    """Pictures in a folder and below it, as ingestion finds them."""
    return sum(is_picture(name) for _, _, files in os.walk(folder) for name in files)


def is_picture(name: str) -> bool:
    """Whether a file's name is a picture's, and not that of a mask or of a hidden file."""
    lower = name.lower()
    return lower.endswith(EXTENSIONS) and not is_mask(lower) and not lower.startswith(".")


def plain_file(name: str) -> str:
    """The name of a picture, a mask or a caption, as it may be written. Raises PlacesError for any other."""
    if name != Path(name).name or "\\" in name or name.startswith(".") or not name.isprintable() or len(name) > 120:
        raise PlacesError(f"{name!r} is no plain file name")
    if not name.lower().endswith((*EXTENSIONS, ".txt")):
        raise PlacesError(f"{name}: only pictures ({', '.join(EXTENSIONS)}) and their captions (.txt) can be added")
    return name
