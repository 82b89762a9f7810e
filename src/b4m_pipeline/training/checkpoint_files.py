"""Names of checkpoints, in one place: who trains, who resumes and who tidies up agree on them. Free of torch."""

from pathlib import Path

_DONE = ".done"
_SUFFIX = ".safetensors"


def checkpoint_file(folder: Path, stage: str, concept: str) -> Path:
    """What a stage on a concept is told; each recipe has files of its own, see `checkpoint_files`."""
    return folder / f"{stage}-{concept}{_SUFFIX}"


def checkpoint_files(path: Path, fingerprint: str) -> tuple[Path, Path]:
    """Where a training with this fingerprint keeps its checkpoint: while it is under way, and when it is done."""
    stem = f"{path.stem}-{fingerprint}"
    return path.with_name(stem + path.suffix), path.with_name(stem + _DONE + path.suffix)


def other_checkpoints(path: Path) -> list[Path]:
    """All that lies there of trainings with whatever fingerprint, a digest of 16 hexadecimal digits."""
    return sorted(path.parent.glob(f"{path.stem}-{'[0-9a-f]' * 16}*"))


def finished_checkpoints(folder: Path, stage: str) -> list[Path]:
    """Those of a stage's finished trainings, newest last."""
    return sorted(folder.glob(f"{stage}-*{_DONE}{_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
