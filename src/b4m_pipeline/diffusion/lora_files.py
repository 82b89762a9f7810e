"""LoRAs that other programs wrote, read as adapters: diffusers' files, and those of kohya's scripts, A1111 and ComfyUI."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import nn

from b4m_pipeline.common.provenance import code_version, file_digest
from b4m_pipeline.common.words import file_words
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.adapter import WEIGHTS_NAME, Adapter, AdapterError
from b4m_pipeline.method.merge import from_factors

logger = logging.getLogger(__name__)

_WORDS = ("token", "noun", "content_token", "style_token", "style_noun", "example_prompt")
_SIDES = ("lora_A", "lora_B")


def find_lora(source: str) -> Path:
    """The file of a LoRA at a path: the path itself, or the one file of weights in a folder. Raises AdapterError if there is
    none, if there are several, or if it is no safetensors file: others can run code when they are opened."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        named = [file for file in found if file.name == WEIGHTS_NAME] or found
        if len(named) > 1:
            raise AdapterError(f"{path} holds several files of weights: name one of {[file.name for file in named]}")
        others = [file.name for file in sorted(path.iterdir()) if file.suffix in (".bin", ".ckpt", ".pt", ".pth")]
        path = named[0] if named else path / (others[0] if others else WEIGHTS_NAME)
    if not path.is_file():
        raise AdapterError(f"No adapter at {path}: is the path right?")
    if path.suffix != ".safetensors":
        raise AdapterError(f"{path} is no .safetensors file. Other files can run code when they are opened: convert it first")
    return path


def is_ours(file: Path) -> bool:
    """Whether `method.files.load_adapter` reads it with all that it knows. Raises AdapterError if it is damaged."""
    header = _open(file)[0]
    return "b4m" in header and "lora_adapter_metadata" in header


def _open(file: Path) -> tuple[dict[str, str], list[str]]:
    """Header and names of the tensors."""
    try:
        with safe_open(file, framework="pt") as handle:
            return handle.metadata() or {}, list(handle.keys())
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} is damaged, or no safetensors file: {error}") from error


def read_lora(file: Path, base_model: BaseModelParams) -> Adapter:
    """A LoRA of the run's base model in float32, with alpha = rank, and named after its file. What it was trained on is not
    known, nor its base model: the layers must be the run's (`require_layers`). Layers of text encoders are left out, with a
    warning. Raises AdapterError."""
    header, keys = _open(file)
    if other := next((key for key in keys if "dora_scale" in key or "magnitude" in key), None):
        raise AdapterError(f"{file} holds {other!r}: it is a DoRA, and only plain LoRAs can be merged")
    family = load_family(base_model)
    denoiser = family.empty_denoiser()
    of_unet = family.denoiser_name == "unet"
    what = "UNet" if of_unet else "transformer"
    further = {"unet_config": denoiser.config} if of_unet else {"return_alphas": True}  # FLUX.1 alone has any
    try:
        state, *alphas_and_config = family.pipeline_class.lora_state_dict(
            str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True, return_lora_metadata=True,
            **further,
        )  # fmt: skip
        about = json.loads(header.get("b4m", "{}"))
        state, config = (_plain(part or {}, of_unet) for part in (state, alphas_and_config[-1]))
        # Most loaders of transformers have multiplied alphas into the weights.
        alphas = _plain(alphas_and_config[0] or {}, of_unet) if len(alphas_and_config) == 2 else {}
        alphas = {key.split(".lora_A.")[0].removesuffix(".alpha"): value for key, value in alphas.items()}
        alphas = {module: _alpha(module, alphas, config) for module in {key.rsplit(".lora_", 1)[0] for key in state}}
    except Exception as error:  # diffusers' converters raise whatever a stranger's file makes them
        raise AdapterError(f"{file} cannot be read as a LoRA: {' '.join(str(error).split())[:300]}") from error
    if text := [key for key in state if key.startswith("text_encoder")]:
        logger.warning(
            "%s also changes the text encoders (%d tensors). These are not taken over: only the %s's layers are merged, and "
            "its words may work less well than with the whole file", file, len(text), what,
        )  # fmt: skip
    tensors = {key: tensor.float() for key, tensor in state.items() if key not in text}
    if other := next((key for key in tensors if not key.endswith(tuple(f".{side}.weight" for side in _SIDES))), None):
        raise AdapterError(f"{file} holds {other!r}, which is no part of a plain LoRA for a {what}")
    if not tensors:
        raise AdapterError(f"{file} holds no LoRA for a {what}" + (", only for text encoders" if text else ""))
    name = file_words(file.parent.resolve().name if file.name == WEIGHTS_NAME else file.stem)
    metadata = {"kind": "lora", "name": name or "lora", "base_model": base_model.path, "frame": "none", "frame_config": "{}"}
    metadata |= family.metadata()
    metadata |= {"data_digest": file_digest(file)[:16], "params": "{}", "code_version": code_version()}
    metadata |= {key: about[key] for key in _WORDS if isinstance(about, dict) and isinstance(about.get(key), str)}
    raw = Adapter(tensors, metadata, {})
    require_layers(raw, denoiser, base_model.path, str(file))
    factors = {}
    for module in raw.modules():
        lora_a, lora_b = (tensors[f"{module}.{side}.weight"] for side in _SIDES)
        rank, alpha = len(lora_a), alphas[module]
        scaling = (rank if alpha is None else alpha) / (rank**0.5 if config.get("use_rslora") else rank)
        factors[module] = lora_a, scaling * lora_b
    return from_factors(factors, metadata)


def _plain(state: dict[str, Any], of_unet: bool) -> dict[str, Any]:
    """With PEFT's names of layers, and without the prefix for the denoiser."""
    if not of_unet:
        return {key.removeprefix("transformer."): value for key, value in state.items()}
    return {key.removeprefix("unet."): value for key, value in convert_unet_state_dict_to_peft(state).items()}


def _alpha(module: str, alphas: dict[str, Any], config: dict[str, Any]) -> float | None:
    """Of a layer: kohya's files have one for each, diffusers' the fields of PEFT's LoraConfig. None: it is the rank, as in
    files without either. Raises ValueError or TypeError if it is no number."""
    pattern = config.get("alpha_pattern") or {}
    found = alphas.get(module, pattern.get(get_pattern_key(list(pattern), module), config.get("lora_alpha")))
    if found is not None and not math.isfinite(found):
        raise ValueError(f"alpha of {module} is {found}")
    return found


def require_layers(adapter: Adapter, denoiser: nn.Module, base: str, source: str) -> None:
    """Raise AdapterError if the adapter has a layer that this denoiser has not, one of another shape, half a layer, or values
    that are no numbers. base, source: how the message calls the two."""
    layers = dict(denoiser.named_modules())
    faults = {}
    for module in adapter.modules():
        lora_a, lora_b = (adapter.tensors.get(f"{module}.{side}.weight") for side in _SIDES)
        if fault := _fault(lora_a, lora_b, layers.get(module)):
            faults[module] = fault
    if faults:
        module, fault = next(iter(faults.items()))
        raise AdapterError(
            f"{source} does not fit the base model {base}: {len(faults)} of {len(adapter.modules())} layers, the first: "
            f"{module} {fault}. Name the base model that it was trained on (base_model.path, or --env=sdxl, sd15, ...)"
        )


def _fault(lora_a: torch.Tensor | None, lora_b: torch.Tensor | None, layer: nn.Module | None) -> str | None:
    """What is wrong with a layer's factors, None if nothing is."""
    if lora_a is None or lora_b is None:
        return "lacks one of its two factors"
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return "is no layer there"
    outputs, *inputs = layer.weight.shape
    rank = lora_a.shape[0] if lora_a.ndim else 0
    if not rank or lora_a.shape != (rank, *inputs) or lora_b.shape != (outputs, rank, *[1] * (len(inputs) - 1)):
        return f"has factors of {tuple(lora_a.shape)} and {tuple(lora_b.shape)} for a weight of {tuple(layer.weight.shape)}"
    return None if lora_a.isfinite().all() and lora_b.isfinite().all() else "has values that are no numbers"
