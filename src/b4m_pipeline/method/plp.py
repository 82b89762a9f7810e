"""Partly learnable projection (PLP): the method of Break-for-Make (arXiv 2403.19456, section 3).

A LoRA on a linear layer W (m, n) is dW = (alpha / r) lora_B lora_A. The first d_B = floor(split m) rows of lora_B and the
first d_A = floor(split n) columns of lora_A are frozen, the rest is learnt:

    lora_B = [F_B]  (d_B, r)     lora_A = [F_A | L_A]     dW ~ [F_B F_A   F_B L_A]
             [L_B]                        (r, d_A)             [L_B F_A   L_B L_A]

One concept lives in F_B L_A, the other in L_B F_A. F_B F_A belongs to nobody: the `exact` frame makes it zero, where the
released code has a norm of 3.9 a layer. All F together are the *frame*; halves of one frame can be put together.

With `order: shuffled` the frozen rows and columns are not the first ones but drawn by lot for each layer. In blocks one half
would read the one text encoder and write the one half of the attention's heads, the other half the rest.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.utils import parametrize

from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.method.adapter import Adapter

ADAPTER = "b4m"  # PEFT's name of the adapter while it is trained

Side = Literal["lora_A", "lora_B"]
Halves = Literal["orthogonal", "free"]
Order = Literal["blocks", "shuffled"]


class FrameMismatchError(ValueError):
    """Halves, or a half and a frame, that do not belong together."""


class TargetError(ValueError):
    """The targets name no layer, or a layer that cannot carry the adapter."""


@dataclass(frozen=True)
class Frame:
    """Which frozen blocks go with which layers of which base model.

    layers: module name -> (out_features m, in_features n). Blocks are drawn on demand, layer by layer, from a private
    generator seeded by (seed, layer name): they depend on neither global RNG state nor the order of layers.
    """

    seed: int
    rank: int
    alpha: float
    split: float
    init: Literal["exact", "paper"]
    scale: float
    base_model: str
    """Which weights, not where they lie: see `diffusion.base_model_id`."""
    layers: dict[str, tuple[int, int]]
    order: Order = "blocks"

    def __post_init__(self):
        for name, (m, n) in self.layers.items():
            if self.rank > min(m, n):
                raise TargetError(f"rank must be <= min(in, out) = {min(m, n)}, got {self.rank} for {name}")
            if min(self.sizes(name)) < 1 or self.sizes(name)[0] >= m or self.sizes(name)[1] >= n:
                raise TargetError(f"split {self.split} leaves no frozen or no learnable part of {name} ({m}, {n})")

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the frozen blocks; halves with equal fingerprints can be combined."""
        fields = asdict(self) | {"layers": sorted((k, *v) for k, v in self.layers.items())}
        if self.order == "blocks":
            del fields["order"]  # frames had no order before, and are the same
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def sizes(self, layer: str) -> tuple[int, int]:
        """(d_B, d_A): frozen rows of lora_B and frozen columns of lora_A."""
        m, n = self.layers[layer]
        return int(self.split * m), int(self.split * n)

    def places(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """lora_B's rows (m,) and lora_A's columns (n,), those that are frozen first."""
        m, n = self.layers[layer]
        if self.order == "blocks":
            return torch.arange(m), torch.arange(n)
        generator = torch_generator("places", self.seed, layer)
        frozen_first = torch.randperm(m, generator=generator), torch.randperm(n, generator=generator)
        rows, columns = (
            torch.cat([own[:size].sort().values, own[size:].sort().values])
            for own, size in zip(frozen_first, self.sizes(layer), strict=True)
        )
        return rows, columns

    def blocks(self, layer: str) -> "Blocks":
        """Draw a layer's frozen blocks."""
        d_b, d_a = self.sizes(layer)
        generator = torch_generator("frame", self.seed, layer)
        basis = _orthonormal(self.rank, self.rank, generator)  # (r, r)
        if self.init == "paper":
            # Rows of one orthonormal matrix, disjoint for the two halves, repeated where a layer has more than it.
            rows_b = _tile(basis[: self.rank // 2], d_b)
            columns_a = _tile(basis[self.rank // 2 :], d_a).T
            return Blocks(self.scale * columns_a, self.scale * rows_b, basis.T, basis.T)
        half = self.rank // 2
        span_b, span_a = basis[:, :half], basis[:, half:]  # (r, r/2) each: complementary subspaces of R^r
        frozen_b = _orthonormal(d_b, half, generator) @ span_b.T
        frozen_a = span_a @ _orthonormal(d_a, half, generator).T
        return Blocks(self.scale * frozen_a, self.scale * frozen_b, span_a, span_b)


@dataclass(frozen=True)
class Blocks:
    """F_A (r, d_A), F_B (d_B, r) and orthonormal bases (r, k) of the subspaces of R^r that each lies in."""

    frozen_a: torch.Tensor
    frozen_b: torch.Tensor
    span_a: torch.Tensor
    span_b: torch.Tensor


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Random (rows, columns) with orthonormal columns, or orthonormal rows where there are fewer rows. Drawn in float64,
    so that products of orthogonal blocks vanish to float32 rounding."""
    gaussian = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(gaussian).Q
    return (q if rows >= columns else q.T).float()


def _tile(rows: torch.Tensor, wanted: int) -> torch.Tensor:
    """Repeat rows (k, r) until there are `wanted`, scaled to keep the block's norm."""
    repeats = -(-wanted // rows.shape[0])
    return rows.repeat(repeats, 1)[:wanted] / repeats**0.5


class FrozenThenLearnt(nn.Module):
    """Parametrisation of a LoRA factor: [frozen, learnt] along `dim`, at `places` (those of the frozen first; None: in this
    order). The frozen part is a buffer, so that no optimizer, weight decay or quantiser can move it. With a `basis` (r, k) the
    learnt part is confined to its span; `span` (r, k) is that of the frozen part, where it is orthogonal to `basis`."""

    def __init__(
        self,
        frozen: torch.Tensor,
        dim: int,
        basis: torch.Tensor | None = None,
        span: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
    ):
        super().__init__()
        self.dim = dim
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("back", None if places is None else places.argsort(), persistent=False)
        self.register_buffer("frozen", frozen, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        reduced = None if span is None else span.T @ frozen if dim == 1 else frozen @ span  # (k, d_A) or (d_B, k)
        self.register_buffer("reduced", reduced, persistent=False)

    def forward(self, learnt: torch.Tensor) -> torch.Tensor:
        if self.basis is not None:  # L_A = basis M_A (r, n - d_A), L_B = M_B basis' (m - d_B, r)
            learnt = self.basis @ learnt if self.dim == 1 else learnt @ self.basis.T
        whole = torch.cat([self.frozen, learnt], dim=self.dim)
        return whole if self.back is None else whole.index_select(self.dim, self.back)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        if self.places is not None:
            weight = weight.index_select(self.dim, self.places)
        learnt = weight.narrow(self.dim, self.frozen.shape[self.dim], weight.shape[self.dim] - self.frozen.shape[self.dim])
        if self.basis is not None:
            learnt = self.basis.T @ learnt if self.dim == 1 else learnt @ self.basis
        return learnt.clone(memory_format=torch.contiguous_format)  # parametrize takes it over as it is: not a view of `weight`


def _parametrized(linear: nn.Linear) -> tuple[FrozenThenLearnt, nn.Parameter]:
    """The parametrisation of a LoRA factor and what it is learnt from."""
    parametrized = linear.parametrizations["weight"]
    return parametrized[0], parametrized.original


def _factor(linear: nn.Linear) -> torch.Tensor:
    """What `linear.weight` is, without the detours of modules that call modules: there are hundreds of these in a step."""
    plp, learnt = _parametrized(linear)
    return plp.forward(learnt)


def _taught(x: torch.Tensor, weight: torch.Tensor, rows: tuple[int, int, int] | None) -> torch.Tensor:
    """F.linear(x (B, ..., n), weight (m, n)), where of rows (start, stop, B) x[start:stop] alone has a gradient to the weight.
    rows None: all of x has. Raises ValueError for another B."""
    if rows is None or not torch.is_grad_enabled():
        return F.linear(x, weight)
    start, stop, whole = rows
    if len(x) != whole:
        raise ValueError(f"pictures were to be taught apart in a batch of {whole}, this one has {len(x)}")
    parts = ((x[:start], weight.detach()), (x[start:stop], weight), (x[stop:], weight.detach()))
    return torch.cat([F.linear(part, own) for part, own in parts if len(part)])


class PlpLinear(LoraLinear):
    """PEFT's LoRA layer with a pass of its own. PEFT's asks for `lora_A.weight` twice, the first time for its dtype alone, and
    under autocast it writes the input out in float32 only for it to be cast back.

    Confined halves need no factors at all. With orthonormal U, V and U'V = 0, F_A = V Q_A, L_A = U M_A, F_B = Q_B U' and
    L_B = M_B V', lora_B lora_A x is [Q_B M_A x_2 ; M_B Q_A x_1] for x = [x_1 ; x_2]: half of a plain LoRA's products.
    """

    teaching: dict[Side, tuple[int, int, int]] | None = None
    """Which pictures of a batch each factor learns from (see `teach_apart`). None: all."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if args or kwargs or self.disable_adapters or self.merged or self.active_adapters != [ADAPTER]:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x)
        (plp_a, learnt_a), (plp_b, learnt_b) = _parametrized(self.lora_A[ADAPTER]), _parametrized(self.lora_B[ADAPTER])
        rows_a, rows_b = (self.teaching and self.teaching[side] for side in ("lora_A", "lora_B"))
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(learnt_a.dtype)
        if plp_a.reduced is None:
            update = _taught(_taught(x, plp_a.forward(learnt_a), rows_a), plp_b.forward(learnt_b), rows_b)  # (..., m)
        else:
            if plp_a.places is not None:
                x = x.index_select(-1, plp_a.places)
            x_1, x_2 = x.split([plp_a.reduced.shape[1], learnt_a.shape[1]], dim=-1)  # (..., d_A), (..., n - d_A)
            rows_1 = F.linear(_taught(x_2, learnt_a, rows_a), plp_b.reduced)  # (..., d_B)
            rows_2 = _taught(F.linear(x_1, plp_a.reduced), learnt_b, rows_b)  # (..., m - d_B)
            update = torch.cat([rows_1, rows_2], dim=-1)
            if plp_b.back is not None:
                update = update.index_select(-1, plp_b.back)
        return torch.add(result, update, alpha=self.scaling[ADAPTER]).to(result.dtype)


@dataclass
class PlpLayer:
    """One adapted layer while it trains. a and b are the learnable parameters (L or M); factors() the full matrices."""

    name: str
    module: LoraLinear

    @property
    def a(self) -> nn.Parameter:
        return self.module.lora_A[ADAPTER].parametrizations.weight.original

    @property
    def b(self) -> nn.Parameter:
        return self.module.lora_B[ADAPTER].parametrizations.weight.original

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.module.scaling[ADAPTER]

    @property
    def basis_a(self) -> torch.Tensor | None:
        return self.module.lora_A[ADAPTER].parametrizations.weight[0].basis

    def frozen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """F_A (r, d_A) and F_B (d_B, r)."""
        sides = (self.module.lora_A, self.module.lora_B)
        frozen_a, frozen_b = (side[ADAPTER].parametrizations.weight[0].frozen for side in sides)
        return frozen_a, frozen_b

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """lora_A (r, n) and lora_B (m, r) as they are applied."""
        return _factor(self.module.lora_A[ADAPTER]), _factor(self.module.lora_B[ADAPTER])


def teach_apart(layers: dict[str, PlpLayer], sides: tuple[Side, Side], counts: list[int]) -> None:
    """From now on the first counts[0] pictures of a batch have a gradient to the learnable part of sides[0] alone, the
    counts[1] after them to that of sides[1] alone. What layers give does not change: two losses that must not meet can go
    through the model together. With gradients on, a batch of another size is then a ValueError."""
    first, whole = counts[0], sum(counts)
    teaching = {sides[0]: (0, first, whole), sides[1]: (first, whole, whole)}
    for layer in layers.values():
        layer.module.teaching = teaching


def find_layers(model: nn.Module, targets: list[str]) -> dict[str, tuple[int, int]]:
    """Linear layers whose names end in one of `targets` -> (out, in). Raises TargetError for a target that names none."""

    def matches(name: str, target: str) -> bool:
        return name == target or name.endswith("." + target)

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if idle := [target for target in targets if not any(matches(name, target) for name in linears)]:
        ends = sorted({name.rsplit(".", 1)[-1] for name in linears if not name.rsplit(".", 1)[-1].isdigit()})
        raise TargetError(f"frame.targets {idle} name no linear layer of the base model; its layers end in {ends}")
    chosen = {n: m for n, m in linears.items() if any(matches(n, target) for target in targets)}
    return {name: (module.out_features, module.in_features) for name, module in chosen.items()}


def inject(model: nn.Module, frame: Frame, halves: Halves, seed: int = 0) -> dict[str, PlpLayer]:
    """Put a PLP LoRA on the frame's layers of a diffusers model (one that has PEFT's add_adapter), all else frozen.

    With the `exact` frame L_A = L_B = 0: dW = 0 at once, and both halves have a gradient. With `paper`,
    L_A ~ N(0, 1/r) from a generator seeded by (seed, layer), L_B = 0, as released. Returns the layers by name.
    """
    model.requires_grad_(False)
    config = LoraConfig(r=frame.rank, lora_alpha=frame.alpha, target_modules=list(frame.layers), init_lora_weights=False)
    config._register_custom_module({nn.Linear: PlpLinear})
    model.add_adapter(config, adapter_name=ADAPTER)
    layers = {}
    for name in sorted(frame.layers):
        module = model.get_submodule(name)
        blocks = frame.blocks(name)
        # Learnable parts stay in float32 also where the frozen model is held in half precision.
        linear_a, linear_b = module.lora_A[ADAPTER].float(), module.lora_B[ADAPTER].float()
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
        rows, columns = frame.places(name) if frame.order == "shuffled" else (None, None)
        # Made where the blocks were drawn, on the CPU, and then moved as a whole.
        plp_a = FrozenThenLearnt(blocks.frozen_a, 1, bases[0], spans[0], columns)
        plp_b = FrozenThenLearnt(blocks.frozen_b, 0, bases[1], spans[1], rows)
        parametrize.register_parametrization(linear_a, "weight", plp_a.to(linear_a.weight.device), unsafe=True)
        parametrize.register_parametrization(linear_b, "weight", plp_b.to(linear_b.weight.device), unsafe=True)
        layers[name] = PlpLayer(name, module)
        for parameter in (layers[name].a, layers[name].b):
            parameter.requires_grad_(True)
    return layers


@torch.no_grad()
def load_halves(layers: dict[str, PlpLayer], adapter: Adapter, frame: Frame) -> None:
    """Set the learnable parts to an adapter's; raises FrameMismatchError if it was trained in another frame."""
    require_same_frame(adapter.metadata["frame"], frame.fingerprint)
    for name, layer in layers.items():
        for side, linear in (("lora_A", layer.module.lora_A), ("lora_B", layer.module.lora_B)):
            linear[ADAPTER].weight = adapter.tensors[f"{name}.{side}.weight"].to(linear[ADAPTER].weight)


@torch.no_grad()
def export(layers: dict[str, PlpLayer], frame: Frame, metadata: dict[str, str], only: Side | None = None) -> Adapter:
    """The adapter as an ordinary LoRA. only="lora_A" keeps one half: L_B = 0, as [F_A | L_A] and [F_B ; 0]."""
    tensors = {}
    for name, layer in layers.items():
        (d_b, d_a), (rows, columns) = frame.sizes(name), frame.places(name)
        lora_a, lora_b = (factor.detach().float().cpu().clone() for factor in layer.factors())
        if only == "lora_A":
            lora_b[rows[d_b:]] = 0
        elif only == "lora_B":
            lora_a[:, columns[d_a:]] = 0
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = lora_a, lora_b
    config = {"r": frame.rank, "lora_alpha": frame.alpha, "target_modules": sorted(frame.layers)}
    described = asdict(frame) | {"layers": {k: list(v) for k, v in frame.layers.items()}}
    own = {"frame": frame.fingerprint, "frame_config": json.dumps(described, sort_keys=True), "half": only or "both"}
    return Adapter(tensors, {**metadata, **own}, config)


def frame_of(adapter: Adapter) -> Frame:
    """The frame that an adapter's metadata describes; raises FrameMismatchError if it does not have its fingerprint."""
    fields = json.loads(adapter.metadata["frame_config"])
    frame = Frame(**{**fields, "layers": {k: tuple(v) for k, v in fields["layers"].items()}})
    require_same_frame(adapter.metadata["frame"], frame.fingerprint)
    return frame


def require_same_frame(first: str, second: str) -> None:
    if first != second:
        raise FrameMismatchError(
            f"Adapters of two frames cannot be combined: {first} and {second}. Halves fit together if they were trained "
            "with the same frame seed, rank, alpha, split, order, init, scale and targets on the same base model."
        )


def reconstruct(half_a: Adapter, half_b: Adapter, metadata: dict[str, str]) -> Adapter:
    """Join one adapter's lora_A = [F_A | L_A] with another's lora_B = [F_B ; L_B] (B4M section 3.3).

    lora_A (r, n) and lora_B (m, r) are taken over bit for bit. Raises FrameMismatchError if the frames differ or a half
    is not the one that is asked for.
    """
    require_same_frame(half_a.metadata["frame"], half_b.metadata["frame"])
    for half, wanted in ((half_a, "lora_A"), (half_b, "lora_B")):
        if half.metadata.get("half") != wanted:
            got = half.metadata.get("half")
            raise FrameMismatchError(f"{half.metadata['name']} is a half of {got}, where one of {wanted} is needed")
    tensors = {}
    for name in half_a.modules():
        tensors[f"{name}.lora_A.weight"] = half_a.tensors[f"{name}.lora_A.weight"].clone()
        tensors[f"{name}.lora_B.weight"] = half_b.tensors[f"{name}.lora_B.weight"].clone()
    shared = {key: half_a.metadata[key] for key in ("base_model", "frame", "frame_config")}
    return Adapter(tensors, {**metadata, **shared, "half": "both"}, dict(half_a.lora_config))


def scale_halves(adapter: Adapter, content: float = 1.0, style: float = 1.0) -> Adapter:
    """The adapter with content's and style's learnt parts scaled: the block of each concept alone is scaled by its own factor,
    the cross term L_B L_A by the product of both. With a factor of 0 its concept is gone, and with it the cross term.

    Raises FrameMismatchError if the adapter has no frame, or does not say whose side is whose.
    """
    about = adapter.metadata
    if about.get("kind") in ("content", "style"):
        factors = {about["half"]: content if about["kind"] == "content" else style}
    elif "content_side" in about:
        other = "lora_B" if about["content_side"] == "lora_A" else "lora_A"
        factors = {about["content_side"]: content, other: style}
    else:
        raise FrameMismatchError(f"{about.get('name', '?')} has no halves that could be scaled")
    frame, tensors = frame_of(adapter), {key: tensor.clone() for key, tensor in adapter.tensors.items()}
    for module in adapter.modules():
        (d_b, d_a), (rows, columns) = frame.sizes(module), frame.places(module)
        tensors[f"{module}.lora_A.weight"][:, columns[d_a:]] *= factors.get("lora_A", 1.0)
        tensors[f"{module}.lora_B.weight"][rows[d_b:]] *= factors.get("lora_B", 1.0)
    return Adapter(tensors, dict(about), dict(adapter.lora_config))
