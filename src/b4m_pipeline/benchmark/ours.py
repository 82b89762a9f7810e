"""Break-for-Make as the benchmark runs it, and its ablations: what it is worth without one of its parts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.inputs.captions import LOOK
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.layers import find_layers
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams, MakeParams
from b4m_pipeline.training.stages import BreakStage, MakeStage


class LeakingBreakStage(BreakStage):
    """Each loss also moves the other half, as in the released code."""

    def _joint_loss(self, setup, own):
        return setup.loss.joint_loss  # nothing routes the gradients: the sum of both losses is differentiated for both halves


@dataclass(frozen=True)
class Variant:
    """What an ablation changes. frame, make: parameters; counterparts, looks, variants (further captions), preservation,
    rehearsal: whether there are any; start: `make.rehearsal.start`; joined: the halves as they are, without the make stage."""

    frame: dict[str, Any] | None = None
    make: dict[str, Any] | None = None
    counterparts: bool = True
    looks: bool = True
    variants: bool = True
    preservation: bool = True
    rehearsal: bool = True
    start: Literal["pictures", "noise"] | None = None  # None: as given
    joined: bool = False
    stage: type[BreakStage] = BreakStage


def break_for_make(task: Task, variant: Variant | None = None) -> Adapter:
    """Ours, as the variant says. Halves are shared with other variants and pairs."""
    v = variant or Variant()
    frame = FrameParams(**task.frame.model_dump() | (v.frame or {}))
    data = _training_set(task.training_set, v)

    def half(kind: Literal["content", "style"], concept: ConceptParams, params: BreakParams) -> Adapter:
        if not v.preservation:
            params = params.model_copy(update={"preservation_weight": 0.0})
        stage = v.stage(kind, data, task.base_model, frame, concept, params, task.seed)
        made_from = [v.stage.__name__, stage.recipe.digest, concept.model_dump(), *task.trained_on(params)]
        return task.shelf.take(lambda: stage.train()[0], "half", *made_from)

    halves = half("content", task.content, task.content_break), half("style", task.style, task.style_break)
    whole = join_halves(*halves, frame.content_side)
    if v.joined:
        return whole
    params = MakeParams(**task.make.model_dump() | (v.make or {}) | ({} if v.rehearsal else {"rehearsal": None}))
    if params.rehearsal:
        rehearsal = params.rehearsal.model_copy(update={"start": v.start} if v.start else {})
        data = _training_set(task.rehearsed(whole, rehearsal), v)
    guard = task.guard() if params.keep == "best" else None
    return MakeStage(whole, data, task.base_model, frame, params, task.seed, guard).train()[0]


def _training_set(data: TrainingSet, variant: Variant) -> TrainingSet:
    if not variant.counterparts:
        data = data.without("counterpart_content", "counterpart_style")
    if not variant.looks:
        looks = data.table.loc[data.caption_source() == LOOK, "picture"]
        data = data.select(~data.table["picture"].isin(looks))  # whatever their captions
    return data if variant.variants else data.without_variants()


def swap_sides(task: Task) -> Adapter:
    """Content in the other factor."""
    side = "lora_A" if task.frame.content_side == "lora_B" else "lora_B"
    return break_for_make(task, Variant(frame={"content_side": side}))


def equal_parameters(task: Task) -> int:
    """Rank of a plain LoRA on the same layers with about as many learnable parameters as our two halves together have during
    the breaks (rounded up, in the other's favour)."""
    layers = find_layers(load_family(task.base_model).empty_denoiser(), task.frame.targets)
    confined = task.frame.halves == "orthogonal"
    each = task.frame.rank // 2 if confined else task.frame.rank
    ours = sum(each * (m - int(task.frame.split * m) + n - int(task.frame.split * n)) for m, n in layers.values())
    return -(-ours // sum(m + n for m, n in layers.values()))


VARIANTS: dict[str, Variant] = {
    "ours": Variant(),
    "ours, halves joined": Variant(joined=True),
    "ours, free halves": Variant(frame={"halves": "free"}),
    "ours, paper's frame": Variant(frame={"init": "paper", "halves": "free"}),
    "ours, no counterparts": Variant(counterparts=False),
    "ours, leaking gradients": Variant(stage=LeakingBreakStage),
    "ours, no looks": Variant(looks=False),
    "ours, no further captions": Variant(variants=False),
    "ours, no preservation": Variant(preservation=False),
    "ours, no rehearsal": Variant(rehearsal=False),
    "ours, rehearsal from noise": Variant(start="noise"),
    "ours, make to its end": Variant(make={"keep": "last"}),
    "ours, the paper's data": Variant(looks=False, variants=False, preservation=False, rehearsal=False),
    "ours, frame of words": Variant(frame={"basis": "words"}),
    "ours, split 0.25": Variant(frame={"split": 0.25}),
    "ours, split 0.75": Variant(frame={"split": 0.75}),
    "ours, make by AdamW": Variant(make={"optimizer": "adamw"}),
}
OURS: dict[str, Callable[[Task], Adapter]] = {
    **{name: partial(break_for_make, variant=variant) for name, variant in VARIANTS.items()},
    "ours, sides swapped": swap_sides,
}
