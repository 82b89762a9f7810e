"""Where the parts of a base model lie: in a folder of diffusers' format, or on the Hub (in one file: see single_file.py)."""

import hashlib
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from b4m_pipeline.common.quiet import hush_bars
from b4m_pipeline.common.tensor_files import Stored, stored_in
from b4m_pipeline.diffusion.families.identity import required, sample_file
from b4m_pipeline.diffusion.params import BaseModelParams

hush_bars()


class Source:
    """A folder of diffusers' format, or a model of the Hub: every part has its own folder."""

    def __init__(self, params: BaseModelParams):
        self.params, self.place = params, params.path
        self._where: dict[str, Any] = {"revision": params.revision}
        self._weights = self._where | {"variant": params.variant, "use_safetensors": True}

    def load(self, part_class: Any, part: str, **extra: Any) -> Any:
        """A part with its weights. Raises BaseModelError if it is not there."""
        with required(f"base_model.path {self.params.path!r} has no usable {part}"):
            return part_class.from_pretrained(self.place, subfolder=part, **self._weights, **extra)

    def load_encoder(self, part: str, **extra: Any) -> Any:
        """A text encoder alone. Raises BaseModelError if it is not there."""
        return self.load(class_of(self.index[part]), part, **extra)

    def empty_encoder(self, part: str) -> Any:
        """A text encoder's layers without weights. Raises BaseModelError if its configuration is not there."""
        encoder_class = class_of(self.index[part])
        with required(f"base_model.path {self.params.path!r} has no usable {part}"):
            config = encoder_class.config_class.from_pretrained(self.place, subfolder=part, **self._where)
        with torch.device("meta"):
            return encoder_class(config)

    def config(self, part_class: Any, part: str) -> dict[str, Any]:
        """A part's configuration. Raises BaseModelError if it is not there."""
        with required(f"base_model.path {self.params.path!r} has no usable {part}"):
            return part_class.load_config(self.place, subfolder=part, **self._where)

    def tokenizer(self, tokenizer_class: Any, part: str) -> Any:
        """Raises BaseModelError if it is not there."""
        with required(f"base_model.path {self.params.path!r} has no usable {part}"):
            return tokenizer_class.from_pretrained(self.place, subfolder=part, **self._where)

    def pipeline(self, pipeline_class: type[DiffusionPipeline], text_parts: Iterable[str], **parts: Any) -> DiffusionPipeline:
        """All parts as a pipeline, these in place of the model's own (None: without). text_parts: encoders and tokenizers."""
        pipeline = pipeline_class.from_pretrained(self.place, **self._weights, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def fetch(self, parts: Iterable[str]) -> None:
        """Have the files of these parts on this machine, where they are on the Hub. Raises BaseModelError if that fails."""
        if not Path(self.place).is_dir():
            others = {part: None for part, entry in self.index.items() if isinstance(entry, list) and part not in parts}
            with required(f"base_model.path {self.params.path!r} cannot be fetched"):
                DiffusionPipeline.download(self.place, **self._weights, **others)

    def check(self, part_class: Any, part: str, empty: Callable[[], torch.nn.Module]) -> None:
        """Raise BaseModelError if a part's weights cannot be those of this class and configuration. empty: makes its layers
        without weights. Folders of diffusers' format are written together, and taken at their word."""

    def held_bytes(self, part: str) -> int | None:
        """Bytes that a part's weights take as they are held, where the file alone decides that. None: where it does not."""
        return None

    def stored(self, part: str) -> Stored | None:
        """A part's weights by the headers of its files. None if these are not on this machine (see `fetch`)."""
        folder = Path(self.place)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import LocalEntryNotFoundError

            try:
                folder = Path(snapshot_download(self.place, revision=self.params.revision, local_files_only=True))
            except LocalEntryNotFoundError:
                return None
        files = list((folder / part).glob("*.safetensors"))
        variant = self._weights.get("variant")
        own = [file for file in files if variant and re.search(rf"\.{re.escape(variant)}[.-]", file.name)]
        plain = [file for file in files if re.fullmatch(r"[a-z_]+(-\d+-of-\d+)?\.safetensors", file.name)]
        return stored_in(own or plain)

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json: the library and the class of each part."""
        return dict(DiffusionPipeline.load_config(self.place, **self._where))

    def names_part(self, part: str) -> bool:
        """Whether the model has this part, as far as its folders tell."""
        folder = Path(self.place)
        return bool((self.index.get(part) or [None])[0]) and (not folder.is_dir() or (folder / part).is_dir())

    def feed(self, parts: Iterable[str], digest: "hashlib._Hash") -> None:
        """Feed what these parts are (a Hub id where they are not local)."""
        feed_folder(self.place, parts, digest)


def class_of(entry: list[str]) -> Any:
    """What model_index.json names: [library, class]."""
    import importlib

    return getattr(importlib.import_module(entry[0]), entry[1])


def feed_folder(place: str | None, parts: Iterable[str], digest: "hashlib._Hash") -> None:
    """Feed the files of these subfolders, or the name of what is no local folder."""
    folder = Path(place or "")
    if place is None or not folder.is_dir():
        digest.update(str(place).encode())
        return
    for part in parts:
        for file in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode())
            sample_file(file, digest)
