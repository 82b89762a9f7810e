"""What Break-for-Make is held against: a Task goes in, an adapter comes out.

All methods have the same pictures, layers and rank, and see as many pictures as ours does. Trainings of a single concept,
such as the two plain LoRAs that every merge starts from, are shared by methods and by pairs (see shelf.py).
"""

import torch

from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.method.layers import find_layers
from b4m_pipeline.method.merge import merge, stack
from b4m_pipeline.method.params import Merge, MergeParams
from b4m_pipeline.training import zip_lora as zipping
from b4m_pipeline.training.lora import lora_adapter, train_lora
from b4m_pipeline.training.params import LoraParams, ZipParams


def joint(task: Task, rank: int | None = None) -> Adapter:
    """One LoRA trained on both concepts' pictures: what most people do. Like make, without further captions: the
    style's token over the content's pictures would teach that it means their styles."""
    pictures = task.training_set.without_variants()
    content, style = task.budget("content"), task.budget("style")
    fields = content.model_dump() | {"learning_rate": task.competitors.joint_learning_rate}
    fields["steps"] = content.steps + round(style.steps * style.batch_size / content.batch_size)
    params = task.as_lora(fields, rank)
    return train_lora("joint", pictures, ["content", "style"], task.base_model, params, task.seed)[0]


def merged(task: Task, how: Merge) -> Adapter:
    """The two plain LoRAs, each with weight one, by `method.merge`."""
    params = MergeParams(density=task.competitors.density, np_strength=task.competitors.np_strength)
    return _of(task, how, merge(task.lora("content"), task.lora("style"), how, params, task.seed))


def _of(task: Task, name: str, adapter: Adapter) -> Adapter:
    """What a merge gives, with the task's metadata."""
    return lora_adapter(name, adapter.tensors, adapter.rank, adapter.lora_config["lora_alpha"], task.base_model, task.about())


def orthogonal_adaptation(task: Task) -> Adapter:
    """Orthogonal Adaptation (Po et al. 2024, arXiv 2312.02432): each concept's lora_A is frozen to its own rows of one
    orthogonal matrix that all share, lora_B is trained; the sum. The rank is the frame's, or half of the narrowest layer's
    inputs where that is less: two concepts have no more room there."""
    family = load_family(task.base_model)
    layers = family.find_layers(family.empty_denoiser(), task.frame.targets)
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
    return _of(task, "orthogonal_adaptation", stack(parts))


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


def zip_lora(task: Task) -> Adapter:
    """ZipLoRA of the two plain LoRAs, see training/zip_lora.py."""
    c = task.competitors
    params = ZipParams(steps=c.zip_steps, learning_rate=c.zip_learning_rate, overlap_weight=c.zip_overlap_weight)
    parts = task.lora("content"), task.lora("style")
    return _of(task, "zip_lora", zipping.zip_lora(*parts, task.training_set, task.base_model, task.make, params, task.seed))
