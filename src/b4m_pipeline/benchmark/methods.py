"""Break-for-Make and what it is held against, behind one interface: a Task goes in, an adapter comes out.

All methods have the same pictures, layers and rank, and see as many pictures as ours does. Trainings of a single concept,
such as the two plain LoRAs that every merge starts from, are shared by methods and by pairs (see shelf.py).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from b4m_pipeline.benchmark.shelf import Shelf
from b4m_pipeline.common.config import (
    BaseModelParams,
    BreakParams,
    CompetitorParams,
    ConceptParams,
    FrameParams,
    LoraParams,
    MakeParams,
    TrainParams,
)
from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.families import base_model_id, load_family
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.plp import TargetError, find_layers
from b4m_pipeline.training import stages
from b4m_pipeline.training.lora import lora_adapter, train_lora
from b4m_pipeline.training.trainer import Objective, fit, resolve_precision


@dataclass
class Task:
    """One content and one style to be put together, and everything that a method may use for it."""

    training_set: TrainingSet = field(repr=False)
    base_model: BaseModelParams
    frame: FrameParams
    content: ConceptParams
    style: ConceptParams
    content_break: BreakParams
    style_break: BreakParams
    make: MakeParams
    competitors: CompetitorParams
    seed: int
    shelf: Shelf = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.content.name}-{self.style.name}"

    def budget(self, kind: str) -> TrainParams:
        """Steps and batch of a single concept's LoRA: its break's, counterparts' pictures included, and half of make's."""
        own: BreakParams = self.content_break if kind == "content" else self.style_break
        shown = own.steps * own.gradient_accumulation * (own.batch_size + own.counterpart_batch_size)
        shown += self.make.steps * self.make.gradient_accumulation * self.make.batch_size / 2
        fields = {name: getattr(own, name) for name in TrainParams.model_fields}
        return TrainParams(**fields | {"steps": max(1, round(shown / (own.batch_size * own.gradient_accumulation)))})

    def lora(self, kind: str) -> Adapter:
        """The plain LoRA of content or style that merges start from."""
        fields = self.budget(kind).model_dump() | {"learning_rate": self.competitors.learning_rate}
        return self.single(kind, self.as_lora(fields))

    def single(self, kind: str, params: LoraParams, frozen_a: Callable[[str, int], torch.Tensor] | None = None) -> Adapter:
        """`train_lora` on one concept alone, shared with other methods and pairs. frozen_a must follow from seed, kind
        and rank."""

        def train() -> Adapter:
            return train_lora(kind, self.training_set, [kind], self.base_model, params, self.seed, frozen_a)[0]

        made_from = [self.training_set.digest(kind), params.model_dump(), self.seed, *self.trained_on(params)]
        return self.shelf.take(train, "lora", kind, *made_from, frozen_a is not None)

    def trained_on(self, params: TrainParams) -> list[str | None]:
        """Which weights, on what and in which number format: one folder may have seen several machines."""
        device = pick_device(params.device)
        return [base_model_id(self.base_model), self.base_model.variant, device, resolve_precision(params.precision, device)]

    def as_lora(self, fields: dict, rank: int | None = None) -> LoraParams:
        """Training parameters with the frame's layers, rank (unless one is given) and alpha / rank."""
        rank = rank or self.frame.rank
        ratio = self.frame.alpha / self.frame.rank
        return LoraParams(**fields | {"rank": rank, "alpha": ratio * rank, "targets": self.frame.targets})

    def about(self) -> dict[str, str]:
        """Metadata of a merged adapter."""
        digest = self.training_set.digest("content", "style")
        return {"data_digest": digest, "params": json.dumps(self.competitors.model_dump(), sort_keys=True)}


def joint(task: Task, rank: int | None = None) -> Adapter:
    """One LoRA trained on both concepts' pictures: what most people do. Like make, without further captions: the
    style's token over the content's pictures would teach that it means their styles."""
    pictures = task.training_set.without_variants()
    content, style = task.budget("content"), task.budget("style")
    fields = content.model_dump() | {"learning_rate": task.competitors.joint_learning_rate}
    fields["steps"] = content.steps + round(style.steps * style.batch_size / content.batch_size)
    params = task.as_lora(fields, rank)
    return train_lora("joint", pictures, ["content", "style"], task.base_model, params, task.seed)[0]


def stack(name: str, parts: list[Adapter], task: Task) -> Adapter:
    """The exact sum of several adapters as one LoRA of their ranks' sum. All must have one alpha / rank."""
    rank, scaling = sum(part.rank for part in parts), parts[0].scaling
    tensors = {}
    for module in parts[0].modules():
        tensors[f"{module}.lora_A.weight"] = torch.cat([part.tensors[f"{module}.lora_A.weight"] for part in parts], 0)
        tensors[f"{module}.lora_B.weight"] = torch.cat([part.tensors[f"{module}.lora_B.weight"] for part in parts], 1)
    return lora_adapter(name, tensors, rank, scaling * rank, task.base_model, task.about())


def merge(task: Task, how: Literal["cat", "ties_svd", "dare_ties_svd", "svd"]) -> Adapter:
    """Two plain LoRAs merged by PEFT's `add_weighted_adapter`, each with weight one; all but `cat` back to the rank of one."""
    content, style = task.lora("content"), task.lora("style")
    unet = load_family(task.base_model).load_denoiser()
    wrapped = None
    for name, part in (("content", content), ("style", style)):
        config = LoraConfig(r=part.rank, lora_alpha=part.lora_config["lora_alpha"], target_modules=part.modules())
        if wrapped is None:
            wrapped = get_peft_model(unet, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
        layers = wrapped.base_model.model
        with torch.no_grad():
            for module in part.modules():
                target = layers.get_submodule(module)
                target.lora_A[name].weight.copy_(part.tensors[f"{module}.lora_A.weight"])
                target.lora_B[name].weight.copy_(part.tensors[f"{module}.lora_B.weight"])
    options = {"density": task.competitors.density} if "ties" in how or "dare" in how else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)  # DARE drops weights at random
        wrapped.base_model.add_weighted_adapter(["content", "style"], [1.0, 1.0], "merged", combination_type=how, **options)
    tensors = {}
    for module in content.modules():
        target = wrapped.base_model.model.get_submodule(module)
        rank = target.lora_A["merged"].weight.shape[0]
        tensors[f"{module}.lora_A.weight"] = target.lora_A["merged"].weight.detach().contiguous().clone()
        # PEFT folds each part's scaling into its factors and gives the result its own
        scaled = target.lora_B["merged"].weight.detach() * target.scaling["merged"]
        tensors[f"{module}.lora_B.weight"] = scaled.contiguous().clone()
    return lora_adapter(how, tensors, rank, rank, task.base_model, task.about())


def np_lora(task: Task) -> Adapter:
    """NP-LoRA (Chen et al. 2025, arXiv 2511.11051), soft and in closed form: style's LoRA as it is, content's taken off style's
    row space, dW_s + dW_c (I - mu / (1 + mu) V V')."""
    content, style, tensors = task.lora("content"), task.lora("style"), {}
    share = task.competitors.np_strength / (1 + task.competitors.np_strength)
    for module in content.modules():
        rows = torch.linalg.svd(style.delta(module), full_matrices=False).Vh[: style.rank]  # (r, in)
        lora_a = content.tensors[f"{module}.lora_A.weight"]
        tensors[f"{module}.lora_A.weight"] = lora_a - share * (lora_a @ rows.T) @ rows
        tensors[f"{module}.lora_B.weight"] = content.tensors[f"{module}.lora_B.weight"]
    projected = Adapter(tensors, content.metadata, content.lora_config)
    return stack("np_lora", [projected, style], task)


def orthogonal_adaptation(task: Task) -> Adapter:
    """Orthogonal Adaptation (Po et al. 2024, arXiv 2312.02432): each concept's lora_A is frozen to its own rows of one
    orthogonal matrix that all share, lora_B is trained; the sum. The rank is the frame's, or half of the narrowest layer's
    inputs where that is less: two concepts have no more room there."""
    layers = find_layers(load_family(task.base_model).empty_denoiser(), task.frame.targets)
    rank = min(task.frame.rank, min(inputs for _, inputs in layers.values()) // 2)

    def shared(layer: str, inputs: int) -> torch.Tensor:
        square = torch.randn(inputs, inputs, generator=torch_generator("orthogonal", task.seed, layer))
        return torch.linalg.qr(square).Q

    parts = []
    for place, kind in enumerate(("content", "style")):
        fields = task.budget(kind).model_dump() | {"learning_rate": task.competitors.orthogonal_learning_rate}

        def rows(layer: str, inputs: int, place: int = place) -> torch.Tensor:
            return shared(layer, inputs)[place * rank : (place + 1) * rank]

        parts.append(task.single(kind, task.as_lora(fields, rank), frozen_a=rows))
    return stack("orthogonal_adaptation", parts, task)


B_LORA_BLOCKS = {"content": "up_blocks.0.attentions.0", "style": "up_blocks.0.attentions.1"}
"""Which of SDXL's transformers carries what, as the paper found."""


def b_lora(task: Task) -> Adapter:
    """B-LoRA (Frenkel et al. 2024, arXiv 2403.14572): two LoRAs, each trained on the attention of two of SDXL's transformers
    together; of content's the first one's part is kept, of style's the second one's. Raises TargetError if the UNet has no such
    blocks."""
    denoiser, kept = load_family(task.base_model).empty_denoiser(), {}
    attention = list(find_layers(denoiser, ["to_q", "to_k", "to_v", "to_out.0"]))
    layers = {kind: [name for name in attention if name.startswith(block + ".")] for kind, block in B_LORA_BLOCKS.items()}
    if absent := [B_LORA_BLOCKS[kind] for kind, names in layers.items() if not names]:
        raise TargetError(f"B-LoRA needs a UNet with the transformers of SDXL; this base model has no {absent}")
    for kind in ("content", "style"):
        fields = task.budget(kind).model_dump() | {"learning_rate": task.competitors.learning_rate}
        targets = {"targets": [*layers["content"], *layers["style"]]}
        params = LoraParams(**task.as_lora(fields).model_dump() | targets)
        part = task.single(kind, params)
        kept |= {key: value for key, value in part.tensors.items() if key.startswith(B_LORA_BLOCKS[kind] + ".")}
    return lora_adapter("b_lora", kept, part.rank, part.lora_config["lora_alpha"], task.base_model, task.about())


class _Zipped(nn.Module):
    """Parametrisation of a frozen weight (m, n): plus content's LoRA, style's, or both with a learnt factor for each column."""

    def __init__(self, content: torch.Tensor, style: torch.Tensor):
        super().__init__()
        self.register_buffer("content", content, persistent=False)
        self.register_buffer("style", style, persistent=False)
        self.columns = nn.Parameter(torch.ones(2, content.shape[1]))
        self.mode = "zipped"

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.mode != "zipped":
            return weight + getattr(self, self.mode).to(weight.dtype)
        return weight + (self.content * self.columns[0] + self.style * self.columns[1]).to(weight.dtype)


def zip_lora(task: Task) -> Adapter:
    """ZipLoRA (Shah et al. 2023, arXiv 2311.13600): two LoRAs summed with a learnt factor for each column of each layer, so
    that the sum predicts on content's pictures what content's LoRA does, on style's what style's does, and the factors
    overlap little. With each column's factor on lora_A the result is an ordinary LoRA."""
    content, style, c = task.lora("content"), task.lora("style"), task.competitors
    own, family, device = task.make, load_family(task.base_model), pick_device(task.make.device)
    unet = family.load_denoiser(device).eval()
    zipped = {}
    for module in content.modules():
        zipped[module] = _Zipped(content.delta(module), style.delta(module)).to(device)
        parametrize.register_parametrization(unet.get_submodule(module), "weight", zipped[module], unsafe=True)
    pictures = task.training_set.without_variants()
    denoise = DiffusionLoss.of(family, unet, pictures.tensors, own)
    rows = {kind: pictures.rows(kind) for kind in ("content", "style")}
    kind_of = {int(row): kind for kind, indices in rows.items() for row in indices}

    def switch(mode: str) -> None:
        for layer in zipped.values():
            layer.mode = mode

    def loss(picked: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        state, parts = generator.get_state(), []
        for kind in ("content", "style"):
            chosen = picked[[kind_of[int(row)] == kind for row in picked]]
            for group in denoise.alike(chosen) if len(chosen) else []:
                with torch.no_grad():
                    switch(kind)
                    generator.set_state(state)
                    wanted, _, _ = denoise.predict(chosen[group], generator)
                switch("zipped")
                generator.set_state(state)
                given, _, _ = denoise.predict(chosen[group], generator)
                parts.append(F.mse_loss(given, wanted, reduction="none").flatten(1).mean(1))
        overlap = sum(F.cosine_similarity(*layer.columns, dim=0).abs() for layer in zipped.values())
        return torch.cat(parts) + c.zip_overlap_weight * overlap

    fields = {name: getattr(own, name) for name in TrainParams.model_fields} | {"optimizer": "adamw"}
    params = TrainParams(**fields | {"steps": c.zip_steps, "learning_rate": c.zip_learning_rate, "weight_decay": 0.0})
    learnt = [layer.columns for layer in zipped.values()]
    objective = Objective("zip", learnt, list(rows.values()), own.batch_size, params.learning_rate)
    fit(loss, [objective], params, seed=task.seed, device=device, description="zip")
    parts = []
    for place, part in enumerate((content, style)):
        factors = {module: layer.columns[place].detach().cpu() for module, layer in zipped.items()}
        tensors = {
            key: tensor * factors[key.rsplit(".lora_", 1)[0]] if ".lora_A." in key else tensor
            for key, tensor in part.tensors.items()
        }
        parts.append(Adapter(tensors, part.metadata, part.lora_config))
    return stack("zip_lora", parts, task)


def break_for_make(
    task: Task,
    frame: dict[str, Any] | None = None,
    make: dict[str, Any] | None = None,
    counterparts: bool = True,
    joined: bool = False,
    looks: bool = True,
    variants: bool = True,
    quiet: bool = True,
    separation: float | None = None,
    routing: Literal["exact", "leaking"] = "exact",
) -> Adapter:
    """Ours. frame, make: parameters that an ablation changes; joined: the halves as they are, without the make stage; the rest:
    whether there are counterparts, the content's other looks (in make too), further captions, a preservation weight, a
    separation weight, and whether losses leak into the other half."""
    framed = FrameParams(**task.frame.model_dump() | (frame or {}))
    data = task.training_set
    if not counterparts:
        data = data.without("counterpart_content", "counterpart_style")
    if not looks:
        data = data.without_looks()
    if not variants:
        data = data.without_variants()

    def half(kind: Literal["content", "style"], concept: ConceptParams, params: BreakParams) -> Adapter:
        changed = {"routing": routing} | ({} if quiet else {"preservation_weight": 0.0})
        changed |= {} if separation is None else {"separation_weight": separation}
        params = params.model_copy(update=changed)
        partners = "counterpart_style" if kind == "content" else "counterpart_content"
        made_from = [data.digest(kind, partners), data.others, *task.trained_on(params), concept.model_dump()]
        return task.shelf.take(
            lambda: stages.train_half(kind, data, task.base_model, framed, concept, params, task.seed)[0],
            *("half", kind, *made_from, framed.model_dump(), params.model_dump(), task.seed),
        )

    content = half("content", task.content, task.content_break)
    style = half("style", task.style, task.style_break)
    whole = stages.join_halves(content, style, framed)
    if joined:
        return whole
    params = MakeParams(**task.make.model_dump() | (make or {}))
    return stages.train_make(whole, data, task.base_model, framed, params, task.seed)[0]


def equal_parameters(task: Task) -> int:
    """Rank of a plain LoRA on the same layers with about as many learnable parameters as our two halves together have during
    the breaks (rounded up, in the competitor's favour)."""
    layers = find_layers(load_family(task.base_model).empty_denoiser(), task.frame.targets)
    confined = task.frame.halves == "orthogonal"
    each = task.frame.rank // 2 if confined else task.frame.rank
    ours = sum(each * (m - int(task.frame.split * m) + n - int(task.frame.split * n)) for m, n in layers.values())
    return -(-ours // sum(m + n for m, n in layers.values()))


Method = Callable[[Task], Adapter | None]

METHODS: dict[str, Method] = {
    "base": lambda task: None,
    "joint": joint,
    "joint, equal parameters": lambda task: joint(task, equal_parameters(task)),
    "sum": lambda task: merge(task, "cat"),
    "TIES": lambda task: merge(task, "ties_svd"),
    "DARE": lambda task: merge(task, "dare_ties_svd"),
    "SVD": lambda task: merge(task, "svd"),
    "Orthogonal Adaptation": orthogonal_adaptation,
    "NP-LoRA": np_lora,
    "ZipLoRA": zip_lora,
    "B-LoRA": b_lora,
    "ours": break_for_make,
    "ours, halves joined": lambda task: break_for_make(task, joined=True),
    "ours, free halves": lambda task: break_for_make(task, frame={"halves": "free"}),
    "ours, paper's frame": lambda task: break_for_make(task, frame={"init": "paper", "halves": "free"}),
    "ours, no counterparts": lambda task: break_for_make(task, counterparts=False),
    "ours, leaking gradients": lambda task: break_for_make(task, routing="leaking"),
    "ours, no looks": lambda task: break_for_make(task, looks=False),
    "ours, no further captions": lambda task: break_for_make(task, variants=False),
    "ours, not quiet": lambda task: break_for_make(task, quiet=False),
    "ours, separated": lambda task: break_for_make(task, separation=0.3),
    "ours, the paper's data": lambda task: break_for_make(task, looks=False, variants=False, quiet=False, separation=0.0),
    "ours, sides swapped": lambda task: break_for_make(task, frame={"content_side": _swapped(task)}),
    "ours, shuffled": lambda task: break_for_make(task, frame={"order": "shuffled"}),
    "ours, split 0.25": lambda task: break_for_make(task, frame={"split": 0.25}),
    "ours, split 0.75": lambda task: break_for_make(task, frame={"split": 0.75}),
    "ours, make by AdamW": lambda task: break_for_make(task, make={"optimizer": "adamw"}),
}
"""By the name that reports show. "base" has no adapter: it is asked in plain words."""


def _swapped(task: Task) -> str:
    return "lora_A" if task.frame.content_side == "lora_B" else "lora_B"
