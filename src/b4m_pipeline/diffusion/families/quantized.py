"""Frozen weights in 8 or 4 bits, by bitsandbytes, through diffusers' and transformers' own quantisation.

LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339) and NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314): linear layers are
quantised while they are loaded, adapters are trained on top of them in float32.
"""

import logging
from importlib.util import find_spec
from typing import Any, Literal

import torch

from b4m_pipeline.diffusion.families.identity import BaseModelError

Quantization = Literal["int8", "nf4"]

BYTES: dict[Quantization, float] = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a weight: NF4 has a float32 scale for each 64."""


class QuantizationError(ValueError):
    """Quantised weights are wanted, and this machine or this base model has none."""


def check_quantization(kind: Quantization | None) -> None:
    """Raise QuantizationError if the package that quantises is absent."""
    if kind and find_spec("bitsandbytes") is None:
        raise QuantizationError(
            f"base_model.quantization is {kind}, which needs the package bitsandbytes: pip install bitsandbytes, or "
            'pip install -e ".[quantization]", or use null'
        )


def is_quantized_inside(name: str, child: torch.nn.Module) -> bool:
    """Whether the linear layers of a denoiser's child are quantised: those of its repeated blocks are. What embeds and what
    gives the result is small, and what it loses all blocks lose."""
    return isinstance(child, torch.nn.ModuleList) or name == "mid_block"


def for_denoiser(kind: Quantization | None, empty: torch.nn.Module, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a denoiser's `from_pretrained`. empty: the same without weights. Raises QuantizationError if bitsandbytes
    is absent."""
    if kind is None:
        return {}
    check_quantization(kind)
    from diffusers import BitsAndBytesConfig

    _let_cpus_quantize()
    kept = [name for name, child in empty.named_children() if not is_quantized_inside(name, child)]
    config = BitsAndBytesConfig(**_options(kind, dtype), llm_int8_skip_modules=kept)
    return {"quantization_config": config, "device_map": {"": device}}


def for_encoder(kind: Quantization | None, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a text encoder's `from_pretrained`. Raises QuantizationError if bitsandbytes is absent."""
    if kind is None:
        return {}
    check_quantization(kind)
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(**_options(kind, dtype)), "device_map": {"": device}}


def keep_trainable(model: Any) -> Any:
    """The model, whose 4-bit layers do not pack their weights anew, in place, when they are first used on some CPUs: there is
    no gradient through what is packed, and not every size can be."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _options(kind: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    # It says for every layer and step that int8's products are float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if kind == "int8":
        return {"load_in_8bit": True}
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}


def _let_cpus_quantize() -> None:
    """Diffusers refuses bitsandbytes where there is no GPU; since its version 0.46 bitsandbytes needs none."""
    from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if torch.cuda.is_available():
        return

    class Anywhere:
        def validate_environment(self, *args: Any, **kwargs: Any) -> None:
            """bitsandbytes is there (see `check_quantization`), and no more is needed."""

        def update_device_map(self, device_map: dict[str, str] | None) -> dict[str, str]:
            return device_map or {"": "cpu"}

    for key in ("bitsandbytes_4bit", "bitsandbytes_8bit"):
        library = AUTO_QUANTIZER_MAPPING[key]
        if library.validate_environment is not Anywhere.validate_environment and library.__module__ != __name__:
            AUTO_QUANTIZER_MAPPING[key] = type(library.__name__, (Anywhere, library), {"__module__": __name__})


def require_plain_weights(path: str, config: dict[str, Any]) -> None:
    """Raise BaseModelError for a denoiser whose weights are quantised in its files: its layers are of other classes, which
    carry no halves."""
    if own := config.get("quantization_config"):
        method = own.get("quant_method", "unknown") if isinstance(own, dict) else own
        raise BaseModelError(
            f"base_model.path {path!r} has weights that are quantised already ({method}), in layers that adapters cannot be "
            "put on: use the model's own weights, and base_model.quantization"
        )
