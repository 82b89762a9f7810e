"""Partly learnable projection (PLP): the frame's layers as they are trained (B4M section 3.1), and their way out as a LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.utils import parametrize

from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.method.adapter import DIRECTIONS_KEY, PEFT_NAME, Adapter
from b4m_pipeline.method.directions import differing_layer, pack_directions, unpack_directions
from b4m_pipeline.method.frame import Frame, FrameMismatchError, TargetError, require_same_frame
from b4m_pipeline.method.params import Side

Halves = Literal["orthogonal", "free"]
SIDES: tuple[Side, ...] = ("lora_A", "lora_B")


class OneCopy:
    """A constant that many layers share, also after their model has moved: one copy a device, where buffers would be many."""

    def __init__(self, tensor: torch.Tensor):
        self._copies = {tensor.device: tensor}

    def on(self, device: torch.device) -> torch.Tensor:
        if device not in self._copies:
            self._copies[device] = next(iter(self._copies.values())).to(device)
        return self._copies[device]


class FrozenThenLearnt(nn.Module):
    """Parametrisation of a LoRA factor: [frozen, learnt] along `dim`. The frozen part is a buffer, so that no optimizer, weight
    decay or quantiser can move it. With a `basis` (r, k) the learnt part is confined to its span; `span` (r, k) is that of the
    frozen part, where it is orthogonal to `basis`. With `rest` (n, n - d_A) the learnt columns stand for its directions, and
    frozen + learnt rest' takes the place of [frozen, learnt] (see directions.py)."""

    frozen: torch.Tensor
    basis: torch.Tensor | None
    reduced: torch.Tensor | None

    def __init__(
        self,
        frozen: torch.Tensor,
        dim: int,
        basis: torch.Tensor | None = None,
        span: torch.Tensor | None = None,
        rest: "OneCopy | None" = None,
    ):
        super().__init__()
        self.dim, self.rest = dim, rest
        self.register_buffer("frozen", frozen, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        reduced = None if span is None else span.T @ frozen if dim == 1 else frozen @ span  # (k, d_A) or (d_B, k)
        self.register_buffer("reduced", reduced, persistent=False)

    def forward(self, learnt: torch.Tensor) -> torch.Tensor:
        if self.basis is not None:  # L_A = basis M_A (r, n - d_A), L_B = M_B basis' (m - d_B, r)
            learnt = self.basis @ learnt if self.dim == 1 else learnt @ self.basis.T
        if self.rest is not None:
            return self.frozen + self.spread(learnt)
        return torch.cat([self.frozen, learnt], dim=self.dim)

    def spread(self, learnt: torch.Tensor) -> torch.Tensor:
        """Learnable columns (k, n - d_A) as a factor of all inputs, (k, n)."""
        return learnt if self.rest is None else learnt @ self.rest.on(learnt.device).T

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        if self.rest is not None:
            learnt = weight @ self.rest.on(weight.device)
        else:
            frozen = self.frozen.shape[self.dim]
            learnt = weight.narrow(self.dim, frozen, weight.shape[self.dim] - frozen)
        if self.basis is not None:
            learnt = self.basis.T @ learnt if self.dim == 1 else learnt @ self.basis
        return learnt.clone(memory_format=torch.contiguous_format)  # parametrize takes it over as it is: not a view of `weight`


def _parametrized(linear: Any) -> tuple[FrozenThenLearnt, nn.Parameter]:
    """The parametrisation of a LoRA factor and what it is learnt from."""
    parametrized = linear.parametrizations["weight"]
    return parametrized[0], parametrized.original


def _factor(linear: Any) -> torch.Tensor:
    """What `linear.weight` is, without the detours of modules that call modules: there are hundreds of these in a step."""
    plp, learnt = _parametrized(linear)
    return plp.forward(learnt)


def _routed(x: torch.Tensor, weight: torch.Tensor, rows: tuple[int, int, int] | None) -> torch.Tensor:
    """F.linear(x (B, ..., n), weight (m, n)), where of rows (start, stop, B) x[start:stop] alone has a gradient to the weight.
    rows None: all of x has. Raises ValueError for another B."""
    if rows is None or not torch.is_grad_enabled():
        return F.linear(x, weight)
    start, stop, whole = rows
    if len(x) != whole:
        raise ValueError(f"gradients were routed for a batch of {whole}, this one has {len(x)}")
    parts = ((x[:start], weight.detach()), (x[start:stop], weight), (x[stop:], weight.detach()))
    return torch.cat([F.linear(part, own) for part, own in parts if len(part)])


class PlpLinear(LoraLinear):
    """PEFT's LoRA layer with a pass of its own. PEFT's asks for `lora_A.weight` twice, the first time for its dtype alone, and
    under autocast it writes the input out in float32 only for it to be cast back.

    Confined halves need no factors at all. With orthonormal U, V and U'V = 0, F_A = V Q_A, L_A = U M_A, F_B = Q_B U' and
    L_B = M_B V', lora_B lora_A x is [Q_B M_A x_2 ; M_B Q_A x_1] for x = [x_1 ; x_2]: half of a plain LoRA's products.
    """

    routes: dict[Side, tuple[int, int, int]] = {}
    """Which images of a batch each factor learns from (see `route_gradients`). Empty: all."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != [PEFT_NAME]:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x)
        (plp_a, learnt_a), (plp_b, learnt_b) = _parametrized(self.lora_A[PEFT_NAME]), _parametrized(self.lora_B[PEFT_NAME])
        rows_a, rows_b = self.routes.get("lora_A"), self.routes.get("lora_B")
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(learnt_a.dtype)
        if plp_a.reduced is None or plp_b.reduced is None:
            update = _routed(_routed(x, plp_a.forward(learnt_a), rows_a), plp_b.forward(learnt_b), rows_b)  # (..., m)
        else:
            if plp_a.rest is None:
                x_1, x_2 = x.split([plp_a.reduced.shape[1], learnt_a.shape[1]], dim=-1)  # (..., d_A), (..., n - d_A)
            else:  # both read all of x (..., n), each its own directions of it
                x_1 = x_2 = x
            rows_1 = F.linear(_routed(x_2, plp_a.spread(learnt_a), rows_a), plp_b.reduced)  # (..., d_B)
            rows_2 = _routed(F.linear(x_1, plp_a.reduced), learnt_b, rows_b)  # (..., m - d_B)
            update = torch.cat([rows_1, rows_2], dim=-1)
        return torch.add(result, update, alpha=self.scaling[PEFT_NAME]).to(result.dtype)


@dataclass
class PlpLayer:
    """One adapted layer while it trains. a and b are the learnable parameters (L or M); factors() the full matrices."""

    name: str
    module: PlpLinear

    @property
    def a(self) -> nn.Parameter:
        return _parametrized(self.module.lora_A[PEFT_NAME])[1]

    @property
    def b(self) -> nn.Parameter:
        return _parametrized(self.module.lora_B[PEFT_NAME])[1]

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.module.scaling[PEFT_NAME]

    @property
    def basis_a(self) -> torch.Tensor | None:
        return _parametrized(self.module.lora_A[PEFT_NAME])[0].basis

    def frozen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """F_A (r, d_A), or (r, n) where words turn it, and F_B (d_B, r)."""
        frozen_a, frozen_b = (_parametrized(side[PEFT_NAME])[0].frozen for side in (self.module.lora_A, self.module.lora_B))
        return frozen_a, frozen_b

    def frozen_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """lora_A and lora_B as they would be had nothing been learnt."""
        (plp_a, a), (plp_b, b) = (_parametrized(side[PEFT_NAME]) for side in (self.module.lora_A, self.module.lora_B))
        return plp_a.forward(torch.zeros_like(a)), plp_b.forward(torch.zeros_like(b))

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """lora_A (r, n) and lora_B (m, r) as they are applied."""
        return _factor(self.module.lora_A[PEFT_NAME]), _factor(self.module.lora_B[PEFT_NAME])


def route_gradients(layers: dict[str, PlpLayer], sides: tuple[Side, Side], counts: list[int]) -> None:
    """From now on the first counts[0] images of a batch have a gradient to the learnable part of sides[0] alone, the
    counts[1] after them to that of sides[1] alone. What layers give does not change: two losses that must not meet can go
    through the model together. With gradients on, a batch of another size is then a ValueError."""
    first, whole = counts[0], sum(counts)
    routes = {sides[0]: (0, first, whole), sides[1]: (first, whole, whole)}
    for layer in layers.values():
        layer.module.routes = routes


def find_layers(model: nn.Module, targets: list[str]) -> dict[str, tuple[int, int]]:
    """Linear layers whose names end in one of `targets` -> (out, in). Raises TargetError for a target that names none, or one
    of another class, as some ways to quantise have."""

    def matches(name: str, target: str) -> bool:
        return name == target or name.endswith("." + target)

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if idle := [target for target in targets if not any(matches(name, target) for name in linears)]:
        ends = sorted({name.rsplit(".", 1)[-1] for name in linears if not name.rsplit(".", 1)[-1].isdigit()})
        raise TargetError(f"frame.targets {idle} name no linear layer of the base model; its layers end in {ends}")
    hidden = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if not isinstance(module, nn.Linear) and "Linear" in type(module).__name__ and not any(module.children())
    }
    for name, kind in hidden.items():
        if any(matches(name, target) for target in targets):
            raise TargetError(f"{name} is a {kind}, no linear layer of torch: quantised weights of this kind carry no adapter")
    chosen = {n: m for n, m in linears.items() if any(matches(n, target) for target in targets)}
    return {name: (module.out_features, module.in_features) for name, module in chosen.items()}


def inject(model: Any, frame: Frame, halves: Halves, seed: int = 0) -> dict[str, PlpLayer]:
    """Put a PLP LoRA on the frame's layers of a diffusers model (one that has PEFT's add_adapter), all else frozen.

    With the `exact` frame L_A = L_B = 0: dW = 0 at once, and both halves have a gradient. With `paper`,
    L_A ~ N(0, 1/r) from a generator seeded by (seed, layer), L_B = 0, as released. Returns the layers by name.
    """
    model.requires_grad_(False)
    config = LoraConfig(r=frame.rank, lora_alpha=frame.alpha, target_modules=list(frame.layers), init_lora_weights=False)
    config._register_custom_module({nn.Linear: PlpLinear})
    model.add_adapter(config, adapter_name=PEFT_NAME)
    layers: dict[str, PlpLayer] = {}
    shared: dict[int, OneCopy] = {}
    for name in sorted(frame.layers):
        module = model.get_submodule(name)
        blocks = frame.blocks(name)
        # Learnable parts stay in float32 also where the frozen model is held in half precision.
        linear_a, linear_b = module.lora_A[PEFT_NAME].float(), module.lora_B[PEFT_NAME].float()
        with torch.no_grad():
            linear_a.weight.zero_()
            linear_b.weight.zero_()
            if frame.init == "paper":
                noise = torch.randn(linear_a.weight.shape, generator=torch_generator("learnable", seed, name))
                linear_a.weight.copy_(noise / frame.rank**0.5)
        # L_A stays in F_B's subspace and L_B in F_A's, so that L_B L_A = 0 while F_B L_A and L_B F_A are not.
        bases = (blocks.span_b, blocks.span_a) if halves == "orthogonal" else (None, None)
        # The paper's frame has no complementary subspaces.
        spans = (blocks.span_a, blocks.span_b) if halves == "orthogonal" and frame.init == "exact" else (None, None)
        # Made where the blocks were drawn, on the CPU, and then moved as a whole.
        rest = None if blocks.rest is None else shared.setdefault(id(blocks.rest), OneCopy(blocks.rest))
        plp_a = FrozenThenLearnt(blocks.frozen_a, 1, bases[0], spans[0], rest)
        plp_b = FrozenThenLearnt(blocks.frozen_b, 0, bases[1], spans[1])
        parametrize.register_parametrization(linear_a, "weight", plp_a.to(linear_a.weight.device), unsafe=True)
        parametrize.register_parametrization(linear_b, "weight", plp_b.to(linear_b.weight.device), unsafe=True)
        layers[name] = PlpLayer(name, module)
        for parameter in (layers[name].a, layers[name].b):
            parameter.requires_grad_(True)
    return layers


@torch.no_grad()
def load_halves(layers: dict[str, PlpLayer], adapter: Adapter, frame: Frame, sides: Sequence[Side] = SIDES) -> None:
    """Set the learnable parts of these sides to an adapter's; raises FrameMismatchError if it was trained in another frame, or
    one of words that other text encoders read."""
    require_same_frame(adapter.metadata["frame"], frame.fingerprint)
    own = unpack_directions(adapter.metadata.get(DIRECTIONS_KEY, "[]"))
    if other := differing_layer(own, frame.directions):
        raise FrameMismatchError(
            f"{adapter.metadata['name']} was trained with other text encoders: its known words differ in other directions "
            f"({other})"
        )
    for name, layer in layers.items():
        for side in sides:
            linear = layer.module.lora_A if side == "lora_A" else layer.module.lora_B
            linear[PEFT_NAME].weight = adapter.tensors[f"{name}.{side}.weight"].to(linear[PEFT_NAME].weight)


@torch.no_grad()
def export(layers: dict[str, PlpLayer], frame: Frame, metadata: dict[str, str], only: Side | None = None) -> Adapter:
    """The adapter as an ordinary LoRA. only="lora_A" keeps one half: L_B = 0, as [F_A | L_A] and [F_B ; 0]."""
    tensors = {}
    for name, layer in layers.items():
        (lora_a, lora_b), (frozen_a, frozen_b) = layer.factors(), layer.frozen_factors()
        if only == "lora_A":
            lora_b = frozen_b
        elif only == "lora_B":
            lora_a = frozen_a
        lora_a, lora_b = (factor.detach().float().cpu().clone() for factor in (lora_a, lora_b))
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = lora_a, lora_b
    config = {"r": frame.rank, "lora_alpha": frame.alpha, "target_modules": sorted(frame.layers)}
    own = {"frame": frame.fingerprint, "frame_config": frame.describe(), "half": only or "both"}
    if frame.directions:
        own[DIRECTIONS_KEY] = pack_directions(frame.directions)
    return Adapter(tensors, {**metadata, **own}, config)
