"""Preservation: train a half not to change the output for prompts that do not name its concept.

The break's loss says what a half has to do for prompts with its concept's token, and nothing about all other prompts. A half
that answers to these too speaks over the other concept when both are put together. So each half is also asked to leave the
outputs of the layers that read the prompt as they are, for prompts of known words and of others' tokens. This is our own step
beyond the paper; it needs no pictures and no pass through the denoiser.
"""

from dataclasses import dataclass

import torch
from peft.utils.integrations import dequantize_module_weight

from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.method.layers import PlpLayer

PromptInputs = dict[str, torch.Tensor]
"""Name of a layer that reads nothing but the prompt -> its inputs (N, T, n) for N prompts, a row a token (T = 1: a prompt).
Rows of zeros are places that a shorter prompt does not have."""


@dataclass
class _Moments:
    second: torch.Tensor
    """E[x x'] (n, n) of the layer's inputs, times the weight."""
    output_variance: torch.Tensor
    """Of the frozen layer's output over them, summed over its m numbers."""


def require_prompt_layers(targets: list[str], prompt_layers: list[str]) -> None:
    """Raise TargetError if none of the adapted layers reads the prompt alone."""
    if not set(targets) & set(prompt_layers):
        ends = sorted({".".join(name.split(".")[-2:]) for name in prompt_layers})
        raise TargetError(f"preservation_weight needs a target that reads the prompt alone; frame.targets name none of {ends}")


class Preservation:
    """How much an adapter changes the layers' outputs for prompts that do not name its concept: E|dW x|^2 as a share of the
    variance of W x over the same prompts, mean over layers, times a weight. In closed form: with C = E[x x'],
    E|dW x|^2 = scaling^2 tr(B'B A C A'), so a step costs r x n x n a layer, however many prompts there are.
    """

    def __init__(self, layers: dict[str, PlpLayer], inputs: PromptInputs, weight: float):
        """inputs: what the layers read for these prompts. Raises TargetError if none of the layers reads the prompt alone."""
        require_prompt_layers(list(layers), list(inputs))
        self.layers = [layer for name, layer in layers.items() if name in inputs]
        second: dict[int, torch.Tensor] = {}
        self.moments = []
        for layer in self.layers:
            rows, key = inputs[layer.name].flatten(0, -2), id(inputs[layer.name])
            x = rows[rows.any(1)].float()
            if key not in second:  # most layers read the same
                second[key] = (weight * x.T @ x / len(x)).contiguous()
            with torch.no_grad():
                frozen = dequantize_module_weight(layer.module.get_base_layer()).float()
                variance = ((x - x.mean(0)) @ frozen.T).square().sum(1).mean()
            self.moments.append(_Moments(second[key], variance))

    def __call__(self) -> torch.Tensor:
        """The mean share times the weight, a scalar with a gradient to the halves."""
        shares = []
        with torch.autocast(self.moments[0].second.device.type, enabled=False):
            for layer, own in zip(self.layers, self.moments, strict=True):
                lora_a, lora_b = layer.factors()
                read, written = lora_a @ own.second @ lora_a.T, lora_b.T @ lora_b  # (r, r) each
                shares.append(layer.scaling**2 * (read * written).sum() / own.output_variance)
        return torch.stack(shares).mean()
