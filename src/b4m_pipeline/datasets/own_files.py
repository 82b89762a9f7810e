"""A folder of pictures in which the program removes nothing but what it wrote itself."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from kedro.io import DatasetError
from kedro_datasets._typing import ImagePreview
from kedro_datasets.partitions import PartitionedDataset

from b4m_pipeline.common.provenance import file_digest
from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.common.whole_files import write_whole
from b4m_pipeline.datasets.picture import image_preview

logger = logging.getLogger(__name__)

RECORD = ".written.json"
_STAGED, _LOCK = ".new", ".written.lock"
_SHOWN, _COLUMNS = 32, 8  # pictures of a folder in the preview, at most, and in a row of it
_MOST_BYTES = 240  # of a file's name: 255 are allowed nearly everywhere, the rest is for what is put behind it


class OwnFilesDataset(PartitionedDataset):
    """partitions.PartitionedDataset for a local folder that the user may put files into, too.

    `.written.json` in it names the files that were written here, with their digests. Saving writes all of the new ones before
    one of the old is touched, then removes those that an earlier save wrote. What the user put there, or changed, stays: where
    a new file needs its name, it is called NAME.kept.png. Loading gives what the last save wrote, and nothing else.

    Args:
        path: the folder. Further options are those of PartitionedDataset.
        replace: whether what earlier saves wrote is removed.
    """

    def __init__(self, *, path: str, replace: bool = True, **options: Any):
        super().__init__(path=path if "://" in path else str(Path(path).absolute()), **options)
        if self._protocol != "file":
            raise DatasetError(f"{path}: OwnFilesDataset is for local folders; PartitionedDataset writes to others")
        self._replace = replace

    @property
    def _folder(self) -> Path:
        return Path(self._path)

    def save(self, data: dict[str, Any]) -> None:
        self._require_short_names(data)
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / _LOCK):  # processes that share a benchmark write the same folder
            self._replace_old(data)
        self._invalidate_caches()

    def _replace_old(self, data: dict[str, Any]) -> None:
        staged = self._folder / _STAGED
        shutil.rmtree(staged, ignore_errors=True)  # of a save that was cut short
        new = {}
        for name in sorted(data):
            target = Path(self._partition_to_path(name))  # refuses what leads out of the folder
            file = target.relative_to(self._folder.as_posix()).as_posix()
            self._write(data[name], staged / file)
            new[file] = file_digest(staged / file)
        known, _ = self._read_record()
        kept = {} if self._replace else known
        # From here on a kill leaves a mixture; the record says so, and knows the files of both.
        both = {file: [*known.get(file, []), *([new[file]] if file in new else [])] for file in known | new}
        self._write_record(both, complete=False)
        for file in new:
            _make_room(self._folder / file, both[file])
            (self._folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / file, self._folder / file)
        written = {file.casefold() for file in new}  # on disks that know no capitals these are the same files
        for file in known.keys() - kept.keys() - new.keys():
            if file.casefold() not in written and _is_own(self._folder / file, known[file]):
                (self._folder / file).unlink()
                _remove_empty(self._folder, (self._folder / file).parent)
        self._write_record(kept | {file: [digest] for file, digest in new.items()}, complete=True)
        shutil.rmtree(staged, ignore_errors=True)

    def load(self) -> dict[str, Callable[[], Any]]:
        known, complete = self._read_record()
        if not complete:
            raise DatasetError(f"{self._path} was being written when its run ended: run the pipeline that makes it again")
        found = {name: load for name, load in super().load().items() if not name.startswith(".")}
        if not known:
            return found  # written by something else
        names = [file.removesuffix(self._filename_suffix) for file in known]
        if missing := sorted(set(names) - set(found)):
            raise DatasetError(
                f"{self._path}: {len(missing)} of {len(names)} files are not there any more ({', '.join(missing[:3])}): run "
                "the pipeline that makes them again"
            )
        return {name: found[name] for name in names}

    def preview(self) -> ImagePreview:
        """The first pictures side by side, for Kedro-Viz."""
        images = [load() for _, load in sorted(self.load().items())[:_SHOWN]]
        return image_preview(paint_grid([Row("", images)], columns=min(_COLUMNS, len(images)), cell=128, bare=True))

    def _write(self, value: Any, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._dataset_type(**self._dataset_config, **{self._filepath_arg: str(file)}).save(
            value() if callable(value) else value
        )

    def _require_short_names(self, data: dict[str, Any]) -> None:
        """Raise DatasetError for a name that not all disks take, before anything is written."""
        for name in data:
            for part in f"{name}{self._filename_suffix}".split("/"):
                if (size := len(os.fsencode(part))) > _MOST_BYTES:
                    raise DatasetError(f"{self._path}: a file's name would have {size} bytes, at most {_MOST_BYTES}: {part}")

    def _read_record(self) -> tuple[dict[str, list[str]], bool]:
        """File -> digests that it had when it was written here; and whether the last save came to its end."""
        try:
            record = json.loads((self._folder / RECORD).read_text(encoding="utf-8"))
            return {str(file): list(digests) for file, digests in record["files"].items()}, bool(record["complete"])
        except FileNotFoundError:
            return {}, True
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s cannot be read: all files beside it are left alone", self._folder / RECORD)
            return {}, True

    def _write_record(self, files: dict[str, list[str]], complete: bool) -> None:
        write_whole(self._folder / RECORD, json.dumps({"complete": complete, "files": files}, indent=0))


def _is_own(file: Path, digests: list[str]) -> bool:
    """Whether a file is one that was written here and is still as it was."""
    return file.is_file() and not file.is_symlink() and file_digest(file) in digests


def _make_room(file: Path, digests: list[str]) -> None:
    """Move what is the user's out of the way of a new file."""
    if not os.path.lexists(file) or _is_own(file, digests):
        return
    number, aside = 1, file.with_name(f"{file.stem}.kept{file.suffix}")
    while os.path.lexists(aside):
        number += 1
        aside = file.with_name(f"{file.stem}.kept-{number}{file.suffix}")
    file.rename(aside)
    logger.warning("%s was not written by a run, or was changed since: it is %s now", file, aside.name)


def _remove_empty(root: Path, folder: Path) -> None:
    """Remove a folder, and those around it below root, that hold nothing any more."""
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
