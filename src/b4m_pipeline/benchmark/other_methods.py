"""What Break-for-Make is held against: a Task goes in, an adapter comes out.

All methods have the same pictures, layers and rank, and see as many pictures as ours does. Trainings of a single concept,
such as the two plain LoRAs that every merge starts from, are shared by methods and by pairs (see shelf.py).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.method.layers import find_layers
from b4m_pipeline.training.lora import lora_adapter, train_lora
from b4m_pipeline.training.params import LoraParams, TrainParams
from b4m_pipeline.training.setup import make_loss
from b4m_pipeline.training.trainer import Objective, fit


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
    config = LoraConfig(r=content.rank, lora_alpha=content.lora_config["lora_alpha"], target_modules=content.modules())
    wrapped = get_peft_model(unet, config, adapter_name="content")
    wrapped.add_adapter("style", config)
    layers = wrapped.base_model.model
    for name, part in (("content", content), ("style", style)):
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
    denoiser = load_family(task.base_model).empty_denoiser()
    kept: dict[str, torch.Tensor] = {}
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

    content: torch.Tensor
    style: torch.Tensor

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
    denoise = make_loss(family, unet, pictures.tensors, own)
    rows = {kind: pictures.rows(kind) for kind in ("content", "style")}
    kind_of = {int(row): kind for kind, indices in rows.items() for row in indices}

    def switch(mode: str) -> None:
        for layer in zipped.values():
            layer.mode = mode

    def loss(picked: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        state, parts = generator.get_state(), []
        for kind in ("content", "style"):
            chosen = picked[[kind_of[int(row)] == kind for row in picked]]
            for group in denoise.group_by_size(chosen) if len(chosen) else []:
                with torch.no_grad():
                    switch(kind)
                    generator.set_state(state)
                    wanted, _, _ = denoise.predict(chosen[group], generator)
                switch("zipped")
                generator.set_state(state)
                given, _, _ = denoise.predict(chosen[group], generator)
                parts.append(F.mse_loss(given, wanted, reduction="none").flatten(1).mean(1))
        overlap = sum(F.cosine_similarity(layer.columns[0], layer.columns[1], dim=0).abs() for layer in zipped.values())
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
