"""A base model in one file, as model sites share them: .safetensors, or .gguf, whose weights are quantised."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import SafetensorError
from safetensors.torch import load_file

from b4m_pipeline.common.tensor_files import Held, Stored, stored_in, tensors_in
from b4m_pipeline.diffusion.families import gguf_files
from b4m_pipeline.diffusion.families.gguf_files import is_gguf
from b4m_pipeline.diffusion.families.identity import BaseModelError, required, sample_file
from b4m_pipeline.diffusion.families.source import Source, class_of
from b4m_pipeline.diffusion.params import BaseModelParams

_UNET = "model.diffusion_model."
_PREFIXES = (_UNET, "diffusion_model.")
"""What stands before the names of a denoiser's tensors, where a program has put the parts of a model into one file."""
_VAE = ("first_stage_model.", "vae.")
_ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
_SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale")
"""Ends of names of what 8-bit weights must be multiplied by, which diffusers does not do."""


def file_tensors(params: BaseModelParams) -> dict[str, Held]:
    """What the base model's file holds, by name. Raises BaseModelError if it cannot be read, QuantizationError if the package
    that reads GGUF files is absent."""
    gguf_files.check_package(params)
    try:
        return tensors_in(Path(params.path))
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        kind = "GGUF" if is_gguf(params.path) else "safetensors"
        raise BaseModelError(f"base_model.path {params.path!r} cannot be read as {kind}: {error}") from error


def plain_name(name: str) -> str:
    """A denoiser's tensor as its authors call it."""
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


class SingleFile(Source):
    """A whole checkpoint, or the denoiser alone. Diffusers' converters read it. Configurations, tokenizers, the scheduler and
    what the file lacks come from base_model.config. encoders: the prefix of each text encoder that may lie in such a file."""

    def __init__(self, params: BaseModelParams, config: str, encoders: Mapping[str, str]):
        super().__init__(params)
        self.place, self.encoders = config, encoders
        self._weights = self._where | {"use_safetensors": True}

    @cached_property
    def tensors(self) -> dict[str, Held]:
        return file_tensors(self.params)

    def _holds(self, part: str) -> bool:
        if part == "vae":  # diffusers converts no other kind of them
            return class_of(self.index[part]) is AutoencoderKL and any(name.startswith(_VAE) for name in self.tensors)
        if part in self.encoders:
            return any(name.startswith(self.encoders[part]) for name in self.tensors)
        return part in ("unet", "transformer")

    def _denoiser(self, tensors: Mapping[str, Any], part: str) -> dict[str, Any]:
        """Of the tensors by name the denoiser's, as diffusers' converter wants to have them called."""
        prefixed = {name for name in tensors if name.startswith(_PREFIXES)}
        mine = prefixed or {name for name in tensors if not name.startswith(_VAE + _ENCODERS)}
        prefix = _UNET if part == "unet" else ""
        return {prefix + plain_name(name): value for name, value in tensors.items() if name in mine}

    def check(self, part_class: Any, part: str, empty: Callable[[], torch.nn.Module]) -> None:
        """The same conversion as for loading, of tensors without content."""
        held = self._denoiser(self.tensors, part)
        self._check_formats(held, part)
        blank = {name: torch.empty(own.shape, device="meta") for name, own in held.items()}
        expected = {name: tuple(value.shape) for name, value in empty().state_dict().items()}
        if blank.keys() != expected.keys():
            config = self.config(part_class, part)
            with self._converted(part_class):
                blank = _converter(part_class)(checkpoint=blank, config=config)
        got = {name: tuple(value.shape) for name, value in blank.items()}
        if missing := [name for name in expected if name not in got]:
            raise self._misfit(part_class, f"it lacks {len(missing)} of {len(expected)} tensors, {missing[0]} among them")
        for name, shape in expected.items():
            if got[name] != shape:
                raise self._misfit(part_class, f"{name} is {got[name]} in the file and {shape} by the configuration")

    def _check_formats(self, held: dict[str, Held], part: str) -> None:
        path = self.params.path
        if scaled := next((name for name in held if name.endswith(_SCALES) or "scaled_fp8" in name), None):
            raise BaseModelError(
                f"base_model.path {path!r} has scaled 8-bit weights ({scaled}), which diffusers does not read: use the model's "
                "own weights, and base_model.quantization, or a GGUF file"
            )
        if is_gguf(path):
            gguf_files.check_formats(path, part, held)

    def _misfit(self, part_class: Any, what: str) -> BaseModelError:
        return BaseModelError(
            f"base_model.path {self.params.path!r} does not fit the {part_class.__name__} that base_model.config "
            f"{self.place!r} describes: {what}. Name the configuration of the model that the file is a version of"
        )

    @contextmanager
    def _converted(self, part_class: Any) -> Iterator[None]:
        """What diffusers' converters raise for tensors that are not there, or of another size, as one error of ours."""
        try:
            yield
        except KeyError as error:
            raise self._misfit(part_class, f"it lacks {error.args[0]}") from error
        except (ValueError, RuntimeError, IndexError) as error:
            raise self._misfit(part_class, str(error).splitlines()[0]) from error

    def held_bytes(self, part: str) -> int | None:
        if not is_gguf(self.params.path) or part != "transformer":
            return None
        return sum(own.size for own in self._denoiser(self.tensors, part).values())

    def stored(self, part: str) -> Stored | None:
        if not self._holds(part):
            return super().stored(part)
        if part in ("unet", "transformer"):
            mine = self._denoiser({name: name for name in self.tensors}, part).values()
            if is_gguf(self.params.path):  # half precision is what its weights are dequantised to
                return Stored(torch.bfloat16, sum(torch.Size(self.tensors[name].shape).numel() for name in mine))
            return stored_in([Path(self.params.path)], set(mine).__contains__)
        prefixes = _VAE if part == "vae" else self.encoders[part]
        return stored_in([Path(self.params.path)], lambda name: name.startswith(prefixes))

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
        given: Any = self.params.path
        if part in ("unet", "transformer"):
            packed = is_gguf(self.params.path)
            extra |= gguf_files.loading(extra["dtype"]) if packed else {}
            given = self._denoiser((gguf_files.read if packed else load_file)(self.params.path), part)
        with required(f"base_model.path {self.params.path!r} has no usable {part}"), self._converted(part_class):
            return part_class.from_single_file(given, config=self.place, subfolder=part, **self._where, **extra)

    def pipeline(self, pipeline_class: type[DiffusionPipeline], text_parts: Iterable[str], **parts: Any) -> DiffusionPipeline:
        dtypes = parts["dtype"] if isinstance(parts.get("dtype"), dict) else {"default": parts.get("dtype")}
        for part in ("unet", "transformer", "vae"):
            if part in self.index and part not in parts:
                parts[part] = self.load(class_of(self.index[part]), part, dtype=dtypes.get(part, dtypes["default"]))
        if encoders := [part for part in text_parts if part not in parts and part in self.encoders and self._holds(part)]:
            others = {key: None for key, entry in self.index.items() if isinstance(entry, list) and key not in encoders}
            dtype = dtypes.get(encoders[0], dtypes["default"])  # they lie in one file, so they are stored alike
            read = pipeline_class.from_single_file(self.params.path, config=self.place, **self._where, dtype=dtype, **others)
            parts |= {part: self._complete(getattr(read, part), part) for part in encoders}
        return super().pipeline(pipeline_class, text_parts, **parts)

    def _complete(self, encoder: Any, part: str) -> Any:
        """A text encoder as diffusers read it from the file, also where this has one of two matrices that are the same."""
        encoder.tie_weights()
        if missing := [name for name, weight in encoder.named_parameters() if weight.device.type == "meta"]:
            raise BaseModelError(f"base_model.path {self.params.path!r} has no whole {part}: it lacks {missing[0]}")
        return encoder.eval()  # diffusers leaves T5 as for training, with dropout

    def feed(self, parts: Iterable[str], digest: "hashlib._Hash") -> None:
        sample_file(Path(self.params.path), digest)
        super().feed(parts, digest)


def _converter(part_class: Any) -> Callable[..., dict[str, Any]]:
    """Diffusers' converter of a class's tensors to its own names."""
    return SINGLE_FILE_LOADABLE_CLASSES[part_class.__name__]["checkpoint_mapping_fn"]
