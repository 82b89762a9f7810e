"""Riemannian preconditioning of LoRA gradients (Zhang & Pilanci 2024, arXiv 2402.02347), batched over layers.

    g_A <- (B'B + delta I)^-1 g_A        g_B <- g_B (AA' + delta I)^-1

PEFT's `peft.optimizers.riemannian` forms B'B from the parameters named lora_B, one layer at a time. Under PLP the parameter is
only the learnable part, while the metric is that of the whole factor, [F_B ; L_B]: so the r x r matrices are formed here
from the full factors, and all layers are solved in one batch.
"""

import torch

from b4m_pipeline.plp import PlpLayer


class RiemannianPreconditioner:
    """Replaces the gradients of the layers' learnable parts in place. Call between clipping and the optimizer's step,
    while gradients exist (the released code calls it after zero_grad, where it moves nothing)."""

    def __init__(self, layers: dict[str, PlpLayer], damping: float):
        if damping <= 0:
            raise ValueError(f"damping must be positive, got {damping}")
        if any(layer.basis_a is not None for layer in layers.values()):
            raise ValueError("Riemannian preconditioning needs free halves: confined ones have no full-rank metric")
        self.layers = list(layers.values())
        self.damping = damping

    @torch.no_grad()
    def __call__(self) -> None:
        layers = [layer for layer in self.layers if layer.a.grad is not None and layer.b.grad is not None]
        if not layers:
            return
        factors = [[factor.float() for factor in layer.factors()] for layer in layers]
        rank = factors[0][0].shape[0]
        damped = self.damping * torch.eye(rank, device=factors[0][0].device)
        metric_a = torch.stack([b.T @ b for _, b in factors]) + damped  # (layers, r, r): acts on g_A
        metric_b = torch.stack([a @ a.T for a, _ in factors]) + damped  # acts on g_B
        inverse_a, inverse_b = (torch.cholesky_inverse(torch.linalg.cholesky(m)) for m in (metric_a, metric_b))
        for index, layer in enumerate(layers):
            layer.a.grad.copy_(inverse_a[index] @ layer.a.grad.float())
            layer.b.grad.copy_(layer.b.grad.float() @ inverse_b[index])
