"""Which weights a base model has, wherever they lie."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from b4m_pipeline.common.hub import reason
from b4m_pipeline.diffusion.params import BaseModelParams


class BaseModelError(ValueError):
    """The base model is not there, or of a family that is not supported."""


@contextmanager
def required(what: str) -> Iterator[None]:
    """An OSError in the block becomes a BaseModelError that says so of `what`."""
    try:
        yield
    except OSError as error:
        raise BaseModelError(f"{what}: {reason(error) or error}") from error


def is_single_file(params: BaseModelParams) -> bool:
    """Whether the base model is one file. Raises BaseModelError if that is neither a safetensors nor a GGUF file."""
    path = Path(params.path)
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise BaseModelError(
            f"base_model.path {params.path!r}: weights are read from .safetensors and .gguf alone, so convert it"
        )
    if path.suffix.lower() not in (".safetensors", ".gguf"):
        return False
    if not path.is_file():
        raise BaseModelError(f"base_model.path {params.path!r}: there is no such file")
    return True


def base_model_id(params: BaseModelParams) -> str:
    """Which base model this is, wherever it lies: name and a digest of the denoiser's weights (of the Hub id and revision where
    the model is not local). Large files are sampled: header, size and 64 evenly spaced blocks of 64 KiB."""
    folder = Path(params.path)
    digest = hashlib.sha256()
    if is_single_file(params):
        sample_file(folder, digest)
        return f"{folder.stem}@{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        digest.update(f"{params.path}@{params.revision}".encode())
        return f"{params.path.rsplit('/', 1)[-1]}@{digest.hexdigest()[:12]}"
    files = sorted(file for part in ("unet", "transformer") for file in (folder / part).glob("*.safetensors"))
    if not files:
        raise BaseModelError(f"base_model.path {params.path!r} has neither unet/*.safetensors nor transformer/*.safetensors")
    for file in files:
        sample_file(file, digest)
    return f"{folder.resolve().name}@{digest.hexdigest()[:12]}"


def sample_file(file: Path, digest: "hashlib._Hash") -> None:
    """Feed size and 64 evenly spaced blocks of 64 KiB of a file: its header is the first."""
    size = file.stat().st_size
    digest.update(str(size).encode())
    with open(file, "rb") as handle:
        for block in range(64):
            handle.seek(block * max(0, size - 65536) // 63)
            digest.update(handle.read(65536))


def weights_digest(path: str | None) -> str | None:
    """Digest of the safetensors in a folder; a Hub id, or None, is its own."""
    if path is None or not Path(path).is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        sample_file(file, digest)
    return digest.hexdigest()[:16]
