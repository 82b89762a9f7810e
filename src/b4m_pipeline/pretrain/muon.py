"""Muon (Jordan et al. 2024) for matrices and convolutions, batched over parameters of one shape.

torch.optim.Muon takes matrices only, one at a time; a UNet has convolutions, and on a CPU the batched Newton-Schulz
iteration is what makes Muon affordable.
"""

from collections import defaultdict

import torch


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearest (semi-)orthogonal matrices of (B, m, n), roughly: quintic Newton-Schulz with Muon's coefficients. The
    iteration bears bfloat16, as its result is rough anyway."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT  # (B, m, m) with m <= n
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the update of a matrix (m, n) is scaled by sqrt(max(1, m / n)). Convolutions count as
    (out, in * kh * kw)."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0, dtype=torch.float32):
        """dtype: of the Newton-Schulz iteration; bfloat16 where the machine has it."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.flatten(1).shape)].append(parameter)
            for (rows, columns), members in by_shape.items():
                for parameter in members:
                    if not self.state[parameter]:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                gradients = [parameter.grad for parameter in members]
                buffers = [self.state[parameter]["momentum_buffer"] for parameter in members]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # Nesterov
                updates = orthogonalise(torch.stack([update.flatten(1) for update in ahead]).to(self.dtype)).float()
                scale = max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
                shaped = [update.view_as(parameter) for parameter, update in zip(members, updates, strict=True)]
                torch._foreach_add_(members, shaped, alpha=-group["lr"] * scale)
