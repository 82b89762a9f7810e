"""Where the parts of a base model lie: in a folder of diffusers' format, on the Hub, or in one file as model sites share it."""

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from b4m_pipeline.common.tensor_files import Stored, stored_in
from b4m_pipeline.diffusion.families.identity import BaseModelError, required, sample_file
from b4m_pipeline.diffusion.params import BaseModelParams

Names = frozenset[str]
"""Of the tensors in a file."""


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
        return self.load(_class_of(self.index[part]), part, **extra)

    def empty_encoder(self, part: str) -> Any:
        """A text encoder's layers without weights. Raises BaseModelError if its configuration is not there."""
        encoder_class = _class_of(self.index[part])
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


class SingleFile(Source):
    """One .safetensors file: a whole checkpoint of Stable Diffusion, or the transformer alone. Diffusers' converters read it.
    Configurations, tokenizers, the scheduler and what the file lacks come from base_model.config."""

    def __init__(self, params: BaseModelParams, config: str):
        super().__init__(params)
        self.place = config
        self._weights = self._where | {"use_safetensors": True}

    @cached_property
    def names(self) -> Names:
        return tensor_names(self.params)

    def _holds(self, part: str) -> bool:
        return part in ("unet", "transformer") or any(name.startswith(_prefixes(part)) for name in self.names)

    def stored(self, part: str) -> Stored | None:
        if not self._holds(part):
            return super().stored(part)
        if part in ("unet", "transformer"):
            others = _prefixes("vae") + _prefixes("text_encoder")
            return stored_in([Path(self.params.path)], lambda name: not name.startswith(others))
        return stored_in([Path(self.params.path)], lambda name: name.startswith(_prefixes(part)))

    def load_encoder(self, part: str, **extra: Any) -> Any:
        if self._holds(part):
            raise BaseModelError(
                f"base_model.quantization: the text encoders of {self.params.path!r} lie in the file itself, where they cannot "
                "be quantised: use null, or a file of the denoiser alone"
            )
        return super().load_encoder(part, **extra)

    def fetch(self, parts: Iterable[str]) -> None:
        super().fetch([part for part in parts if not self._holds(part)])

    def load(self, part_class: Any, part: str, **extra: Any) -> Any:
        if not self._holds(part):
            return super().load(part_class, part, **extra)
        with required(f"base_model.path {self.params.path!r} has no usable {part}"):
            return part_class.from_single_file(self.params.path, config=self.place, subfolder=part, **self._where, **extra)

    def pipeline(self, pipeline_class: type[DiffusionPipeline], text_parts: Iterable[str], **parts: Any) -> DiffusionPipeline:
        dtypes = parts["dtype"] if isinstance(parts.get("dtype"), dict) else {"default": parts.get("dtype")}
        for part in ("unet", "transformer", "vae"):
            if part in self.index and part not in parts:
                parts[part] = self.load(_class_of(self.index[part]), part, dtype=dtypes.get(part, dtypes["default"]))
        encoders = [part for part in text_parts if part.startswith("text_encoder") and part not in parts]
        if encoders and self._holds("text_encoder"):
            others = {key: None for key, entry in self.index.items() if isinstance(entry, list) and key not in encoders}
            dtype = dtypes.get(encoders[0], dtypes["default"])  # they lie in one file, so they are stored alike
            read = pipeline_class.from_single_file(self.params.path, config=self.place, **self._where, dtype=dtype, **others)
            parts |= {part: getattr(read, part) for part in encoders}
        return super().pipeline(pipeline_class, text_parts, **parts)

    def feed(self, parts: Iterable[str], digest: "hashlib._Hash") -> None:
        sample_file(Path(self.params.path), digest)
        super().feed(parts, digest)


def _prefixes(part: str) -> tuple[str, ...]:
    """How names of the VAE's tensors, or of those of the text encoders, begin in a file of several parts."""
    return ("first_stage_model.", "vae.") if part == "vae" else ("cond_stage_model.", "conditioner.", "text_encoders.")


def _class_of(entry: list[str]) -> Any:
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


def tensor_names(params: BaseModelParams) -> Names:
    """What a single file holds. Raises BaseModelError if it cannot be read."""
    try:
        with safe_open(params.path, framework="pt") as file:
            return frozenset(file.keys())
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"base_model.path {params.path!r} cannot be read as safetensors: {error}") from error
