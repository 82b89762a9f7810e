"""Encoded pictures and prompts on disk, so that no later run encodes the same again.

An entry's name knows everything that it depends on: the weights that encode, the code, and the picture's pixels or the prompt's
text. Entries are never changed; the folder may be deleted at any time. What comes from it is what encoding anew would give, to
the rounding that depends on which pictures share a batch.
"""

import hashlib
import logging
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from b4m_pipeline.common.whole_files import whole_file

logger = logging.getLogger(__name__)

Encoded = dict[str, torch.Tensor]


class EncodingCache:
    """A folder of small safetensors files, one for each picture and each prompt."""

    def __init__(self, folder: Path | None, encoder: str):
        """folder: None for no cache. encoder: digest of what encodes (see `Family.encoder_digest`)."""
        self.folder = None if folder is None else Path(folder) / encoder

    def get(self, key: str) -> Encoded | None:
        """The entry of this key (see `picture_key`, `prompt_key`), or None. A damaged one counts as absent."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read and is encoded anew: %s", path, error)
            return None

    def put(self, key: str, encoded: Encoded) -> None:
        """Keep an entry. A full or unwritable disk costs the cache alone, and is said aloud."""
        if self.folder is None:
            return
        path = self.folder / f"{key}.safetensors"
        try:
            with whole_file(path) as own:  # several runs may write the same entry
                save_file({name: tensor.contiguous() for name, tensor in encoded.items()}, own)
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be written, this run goes on without it: %s", path, error)


def picture_key(picture: Image.Image) -> str:
    """Of an RGB picture's pixels and size."""
    rgb = picture.convert("RGB")
    return f"picture-{rgb.width}x{rgb.height}-{hashlib.sha256(rgb.tobytes()).hexdigest()[:32]}"


def prompt_key(prompt: str) -> str:
    """Of a prompt's text."""
    return f"prompt-{hashlib.sha256(prompt.encode()).hexdigest()[:32]}"
