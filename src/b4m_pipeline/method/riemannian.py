"""Riemannian preconditioning of LoRA gradients (Zhang & Pilanci 2024, arXiv 2402.02347), batched over layers.

    g_A <- (B'B + delta I)^-1 g_A        g_B <- g_B (AA' + delta I)^-1

PEFT's `peft.optimizers.riemannian` forms B'B from the parameters named lora_B, one layer at a time. Under PLP the parameter is
only the learnable part, while the metric is that of the whole factor, [F_B ; L_B]: B'B = F_B'F_B + L_B'L_B. The first term
never changes, so it is formed once; layers of one shape are done together, as hundreds of small products are all overhead.
"""

from collections import defaultdict

import torch

from b4m_pipeline.method.layers import PlpLayer


class RiemannianPreconditioner:
    """Replaces the gradients of the layers' learnable parts in place. Call between clipping and the optimizer's step,
    while gradients exist (the released code calls it after zero_grad, where it moves nothing)."""

    def __init__(self, layers: dict[str, PlpLayer], damping: float):
        if damping <= 0:
            raise ValueError(f"damping must be positive, got {damping}")
        if any(layer.basis_a is not None for layer in layers.values()):
            raise ValueError("Riemannian preconditioning needs free halves: confined ones have no full-rank metric")
        self.damping = damping
        shapes = defaultdict(list)
        for layer in layers.values():
            shapes[layer.a.shape, layer.b.shape].append(layer)
        self.groups = [_Group(group) for group in shapes.values()]

    @torch.no_grad()
    def __call__(self) -> None:
        for group in self.groups:
            group.precondition(self.damping)


class _Group:
    """Layers of one shape. frozen_a: F_A F_A', frozen_b: F_B'F_B, (layers, r, r) each, float32."""

    def __init__(self, layers: list[PlpLayer]):
        self.layers = layers
        frozen = [[part.float() for part in layer.frozen()] for layer in layers]
        self.frozen_a = torch.stack([a @ a.T for a, _ in frozen])
        self.frozen_b = torch.stack([b.T @ b for _, b in frozen])

    def precondition(self, damping: float) -> None:
        """Replace the gradients of both learnable parts; those of layers without one stay away."""
        kept = [i for i, layer in enumerate(self.layers) if layer.a.grad is not None and layer.b.grad is not None]
        if not kept:
            return
        layers = [self.layers[i] for i in kept]
        a, b = _stack([layer.a for layer in layers]), _stack([layer.b for layer in layers])  # (k, r, n'), (k, m', r)
        metric_a = _damped(self.frozen_b[kept] + b.mT @ b, damping)  # acts on g_A
        metric_b = _damped(self.frozen_a[kept] + a @ a.mT, damping)  # acts on g_B
        gradients_a = [layer.a.grad for layer in layers if layer.a.grad is not None]
        gradients_b = [layer.b.grad for layer in layers if layer.b.grad is not None]
        torch._foreach_copy_(gradients_a, list((_inverse(metric_a) @ _stack(gradients_a)).unbind()))
        torch._foreach_copy_(gradients_b, list((_stack(gradients_b) @ _inverse(metric_b)).unbind()))


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.detach() for tensor in tensors]).float()


def _damped(metric: torch.Tensor, damping: float) -> torch.Tensor:
    metric.diagonal(dim1=-2, dim2=-1).add_(damping)
    return metric


def _inverse(metric: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(metric))
