"""What memory a base model needs, from its configuration alone: nothing is loaded, sizes come from the meta device."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from b4m_pipeline.common.devices import DTYPES, drawing_dtype, encoding_dtype, is_large, resolve_precision
from b4m_pipeline.common.tensor_files import Stored
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.families.base import Family
from b4m_pipeline.diffusion.families.quantized import BYTES, is_quantized_inside
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.adapter import PEFT_NAME

_WORKING = 2
"""Activations that are held at once without gradients, as a multiple of the largest input and output of one layer."""


class _FlashAttention(torch.autograd.Function):
    """Shapes of attention that keeps queries, keys, values, its result and a number a row, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Fused(TorchFunctionMode):
    """The meta device would keep all products of queries and keys, which no kernel does that is used."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _FlashAttention.apply(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))


def _fused(module: Callable, *args: Any) -> Any:
    """Call with fused attention, also where the backward pass calls again: modes for functions do not reach there."""
    with _Fused():
        return module(*args)


class Live(TorchDispatchMode):
    """Bytes of the tensors that are made while it is on and not gone yet; `peak` is the most at once. A storage that several
    tensors share counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._known.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if (key := storage._cdata) not in self._known | given:  # neither counted nor a view of what was there before
                self._known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result


def number_format(precision: str, device: str) -> torch.dtype:
    """What a precision stands for on a device, which need not be here: auto is bfloat16 on a GPU then, as on any recent one."""
    if precision == "auto" and device == "cuda" and not torch.cuda.is_available():
        return torch.bfloat16
    return DTYPES[resolve_precision(precision, device)]


def activations(
    base: BaseModelParams, targets: tuple[str, ...], rank: int, batch: int, dtype: torch.dtype, device: str, checkpointed: bool
) -> int:
    """Bytes that a training step holds at most beside weights and adapter, on `batch` images of base.resolution with a LoRA of
    this rank on the targets: the step is done on the meta device, forward and back, with fused attention."""
    plain = base.model_copy(update={"quantization": None, "offload": None})
    return _activations(plain, targets, rank, batch, dtype, device, checkpointed)


@lru_cache(maxsize=32)
def _activations(
    base: BaseModelParams, targets: tuple[str, ...], rank: int, batch: int, dtype: torch.dtype, device: str, checkpointed: bool
) -> int:
    family = load_family(base)
    denoiser = family.arrange(_in(family.empty_denoiser(), dtype), device).requires_grad_(False)
    config = LoraConfig(r=rank, target_modules=list(family.find_layers(denoiser, list(targets))), init_lora_weights=False)
    with torch.device("meta"):
        denoiser.add_adapter(config, adapter_name=PEFT_NAME)
    for name, weight in denoiser.named_parameters():
        weight.requires_grad_("lora_" in name)
    if checkpointed:
        denoiser.enable_gradient_checkpointing(partial(checkpoint, _fused, use_reentrant=False, preserve_rng_state=False))
    with Live() as live, _Fused():
        _predict(family, denoiser, batch, dtype).float().square().mean().backward()
    return live.peak


def _in(model: Any, dtype: torch.dtype) -> Any:
    """A model without weights in a number format: diffusers' own `to` warns of what such a model cannot lose."""
    return torch.nn.Module.to(model, dtype)


def _predict(family: Family, denoiser: Any, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """A forward pass on the meta device for latents of the base's resolution."""
    side = family.params.resolution // family.vae_factor()
    latents = torch.empty(batch, family.latent_channels(), side, side, device="meta", dtype=dtype)
    prompts = {
        key: value if value.device.type == "cpu" else value.to(dtype) for key, value in family.blank_prompts(batch).items()
    }
    return family.predict(denoiser, latents, torch.empty(batch, device="meta"), prompts)


def _bytes(model: torch.nn.Module, dtype: torch.dtype, kind: str | None = None, everywhere: bool = False) -> int:
    """Of a model's weights. kind: how linear layers are quantised, everywhere or only inside a denoiser's blocks."""
    whole = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    if kind is None:
        return whole
    inside = [child for name, child in model.named_children() if everywhere or is_quantized_inside(name, child)]
    spared = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # transformers leaves it as it is
    linears = [m for child in inside for m in child.modules() if isinstance(m, torch.nn.Linear) and m is not spared]
    small = sum(linear.weight.numel() for linear in linears)
    return math.ceil(whole - small * (dtype.itemsize - BYTES[kind]))  # type: ignore[index]


@lru_cache(maxsize=32)
def layer_sizes(base: BaseModelParams, targets: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """(out, in) of the layers that the targets name."""
    family = load_family(base)
    return tuple(family.find_layers(family.empty_denoiser(), list(targets)).values())


@lru_cache(maxsize=32)
def denoiser_bytes(base: BaseModelParams, dtype: torch.dtype) -> int:
    """Of the frozen denoiser's weights, as `base_model.quantization` or a GGUF file says."""
    family = load_family(base)
    held = family.source.held_bytes(family.denoiser_name)
    return held or _bytes(family.empty_denoiser(), dtype, family.params.quantization)


@lru_cache(maxsize=32)
def encoder_bytes(base: BaseModelParams, device: str, dtype: torch.dtype | None = None) -> tuple[int, ...]:
    """Of each text encoder's weights. dtype: the number format; None: the one in which prompts are encoded."""
    family, found = load_family(base), []
    for part in family.encoders():
        empty = family.source.empty_encoder(part)
        count = sum(weight.numel() for weight in empty.parameters())
        stored = family.source.stored(part) or Stored(torch.bfloat16, count)  # what large ones come in
        kind = family.params.quantization if is_large(Stored(stored.dtype, count)) else None
        found.append(_bytes(empty, dtype or encoding_dtype(device, stored), kind, everywhere=True))
    return tuple(found)


@dataclass(frozen=True)
class Drawing:
    """Bytes of the parts that draw (text encoders, denoiser, VAE), of the largest layer among them, and of the activations of
    one step and of decoding."""

    parts: tuple[int, ...]
    layer: int
    working: int

    def total(self, offload: str | None) -> int:
        """What is in the GPU's memory at once."""
        weights = {None: sum(self.parts), "model": max(self.parts), "group": 2 * self.layer}[offload]
        return weights + self.working


@lru_cache(maxsize=32)
def drawing(base: BaseModelParams, batch: int, device: str, guided: bool = True) -> Drawing:
    """To draw `batch` images of base.resolution at once; guided: twice as many go through the denoiser."""
    family = load_family(base)
    stored = family.source.stored(family.denoiser_name)
    dtype = drawing_dtype(device, family.gpu_dtype, stored)
    denoiser, vae = (_in(part, dtype) for part in (family.empty_denoiser(), family.empty_vae()))
    parts = (*encoder_bytes(base, device, dtype), denoiser_bytes(base, dtype), _bytes(vae, dtype))
    layer = max(weight.numel() for weight in denoiser.parameters()) * dtype.itemsize
    with torch.no_grad(), _Fused(), _largest(denoiser) as step:
        _predict(family, denoiser, 2 * batch if guided else batch, dtype)
    decoded = vae_bytes(family, vae.decoder, 1 if base.offload else batch, dtype, decoding=True)
    return Drawing(parts, layer, max(_WORKING * step[0], decoded))


def vae_bytes(family: Family, half: Any, batch: int, dtype: torch.dtype, decoding: bool) -> int:
    """Activations of a VAE's encoder or decoder for `batch` pictures of the base's resolution."""
    first = half.conv_in
    side = family.params.resolution // (family.pixels_per_vae_latent() if decoding else 1)
    shape = (batch, first.in_channels, *([1] if first.weight.dim() == 5 else []), side, side)
    with torch.no_grad(), _Fused(), _largest(half) as found:
        half(torch.empty(shape, device="meta", dtype=dtype))
    return _WORKING * found[0]


@contextmanager
def _largest(model: torch.nn.Module) -> Iterator[list[int]]:
    """Bytes of the largest input and output of one layer, in a list of one, while the block calls the model."""
    found = [0]

    def measure(module: Any, given: Any, result: Any) -> None:
        tensors = [each for each in (*given, result) if isinstance(each, torch.Tensor)]
        found[0] = max(found[0], sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    hooks = [module.register_forward_hook(measure) for module in model.modules() if not any(module.children())]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
