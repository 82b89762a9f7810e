"""The adapter as data: LoRA tensors with their provenance. Free of torch, so that Kedro's nodes can name it (files.py has
I/O)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from b4m_pipeline.common.words import fill_prompt

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""What diffusers' load_lora_weights looks for in a folder."""
PEFT_NAME = "b4m"
"""PEFT's name of the adapter on a model."""
URI_KEY = "registry_uri"
"""Metadata of an adapter loaded from the registry or registered: its version there, "models:/NAME/VERSION"."""
RECIPE_KEY = "recipe_digest"
"""Metadata of a trained adapter: digest of all that decides its weights (see common/provenance.py)."""

CREATED = "created"
"""Metadata of a trained adapter, and of what is made of such: when it was trained, ISO 8601 in UTC."""

DIRECTIONS_KEY = "frame_directions"
"""Metadata of an adapter with a frame of words: its directions, see directions.py."""

KEPT_STEP, KEPT_FIGURES = "kept_step", "kept_figures"
"""Metadata of a made adapter: which step of make was kept ("0": the joined halves), and what was measured, as JSON."""


BASE_DETAILS = ("config", "revision", "vae", "variant", "quantization")
"""What names a base model beside its path, and how its weights are held, in the metadata as base_config and so on."""

PIPELINE_KEY = "base_pipeline"
"""Metadata of an adapter for a transformer: diffusers' class of the base model's pipeline. Those for a UNet have none."""


LONGEST_ADAPTER_NAME = 240
"""Bytes of an adapter's name, which is also a folder's (at most 255) and the end of a registered model's (at most 256)."""


class AdapterError(ValueError):
    """An adapter's file is missing, damaged or not one of ours."""


def example_prompt(about: dict[str, str]) -> str | None:
    """A prompt that an adapter with this metadata answers to; None if it does not say."""
    if "example_prompt" in about or "content_token" not in about:
        return about.get("example_prompt")
    words = {"content": about["content_token"], "style": about["style_token"]}
    return fill_prompt("{article} {content} {noun} in {style} style", words, about.get("noun", ""))


@dataclass
class Adapter:
    """A LoRA for a diffusers UNet or transformer.

    tensors: "<module>.lora_A.weight" (r, in) and "<module>.lora_B.weight" (out, r), float32 on the CPU.
    metadata: flat text fields; see `REQUIRED` for those that every adapter carries.
    lora_config: PEFT's LoraConfig fields (r, lora_alpha, target_modules), which stock diffusers reads from the file.
    """

    tensors: "dict[str, torch.Tensor]" = field(repr=False)
    metadata: dict[str, str]
    lora_config: dict

    REQUIRED = ("kind", "name", "base_model", "frame", "frame_config", "data_digest", "params", "code_version")

    @property
    def prefix(self) -> str:
        """What a pipeline calls the part that the adapter is for, before the names in a file."""
        return "transformer." if PIPELINE_KEY in self.metadata else "unet."

    @property
    def rank(self) -> int:
        return int(self.lora_config["r"])

    @property
    def scaling(self) -> float:
        """alpha / r: the factor on lora_B lora_A."""
        return float(self.lora_config["lora_alpha"]) / self.rank

    def modules(self) -> list[str]:
        """Names of the adapted modules, in order."""
        return sorted({key.rsplit(".lora_", 1)[0] for key in self.tensors})

    def delta(self, module: str) -> "torch.Tensor":
        """The change of a module's weight, (out, in)."""
        return self.scaling * self.tensors[f"{module}.lora_B.weight"] @ self.tensors[f"{module}.lora_A.weight"]
