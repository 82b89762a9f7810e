"""The two stages of Break-for-Make that train: break (one half) and make (the whole).

They take an encoded training set and parameters and return adapters; they know neither Kedro nor MLflow. Each stage is an
object that knows its recipe before it trains, so that whoever has the result of the same recipe need not train it again."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from b4m_pipeline.common.devices import computing_threads, threads_of_a_half
from b4m_pipeline.common.provenance import GUARD_CODE, Recipe, digest_of, recipe_modules
from b4m_pipeline.common.words import article
from b4m_pipeline.diffusion.architectures import architecture_of
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import KEPT_FIGURES, KEPT_STEP, URI_KEY, Adapter
from b4m_pipeline.method.frame import half_side
from b4m_pipeline.method.layers import export, load_halves, route_gradients
from b4m_pipeline.method.params import FrameParams, Side
from b4m_pipeline.method.riemannian import RiemannianPreconditioner
from b4m_pipeline.training.objectives import Objective
from b4m_pipeline.training.parallel import share
from b4m_pipeline.training.params import BreakParams, MakeParams, TrainParams
from b4m_pipeline.training.setup import Show, TrainingSetup, make_frame, require_encoded_by, set_up
from b4m_pipeline.training.starts import check_start, weights_digest
from b4m_pipeline.training.trainer import JointLoss, Log, fit

logger = logging.getLogger(__name__)

Kind = Literal["content", "style"]
History = list[dict[str, float]]

_IGNORED = (
    *("train.checkpoint_every", "train.keep_checkpoint", "train.processes", "train.samples"),
    "train.rehearsal",  # its pictures are data
    "train.start_from",  # its weights are the parent
)
_KEPT = ("noun", "style_noun", "content_name", "style_name", "content_token", "style_token", "content_side", "parents")


@dataclass(frozen=True)
class TrainingIO:
    """Where a training keeps its checkpoint, and who is told of its figures and shown its images."""

    checkpoint: Path | None = None
    log: Log | None = None
    show: Show | None = None


class Guard(Protocol):
    """Measures what make gave at some of its steps."""

    settings: dict[str, Any]
    """What its choice follows from, as part of the recipe."""

    def choose(self, candidates: dict[int, Adapter]) -> tuple[int, dict[int, dict[str, float]]]:
        """The step that is kept, and the figures of all. candidates: the joined halves as step 0, make's adapters by steps."""
        ...


@dataclass
class BreakStage:
    """Break (B4M section 3.2): the concept's half learns the concept at the main rate, the other half learns counterparts at
    a lower one, so that the half works with many partners. Each loss touches its own half alone. Without counterparts
    the other half stays as it is. The concept's half may go on from one that was trained before."""

    kind: Kind
    training_set: TrainingSet
    base_model: BaseModelParams
    frame: FrameParams
    concept: ConceptParams
    params: BreakParams
    seed: int
    start: Adapter | None = None
    """What `params.start_from` names."""

    def __post_init__(self):
        if (self.start is None) != (self.params.start_from is None):
            raise ValueError(f"{self.name}.start_from: here halves are trained from the beginning: set it to null")

    @property
    def name(self) -> str:
        """Of curves and checkpoints."""
        return f"{self.kind}_break"

    @property
    def concept_name(self) -> str:
        return self.concept.name

    @property
    def _counterparts(self) -> str:
        return "counterpart_style" if self.kind == "content" else "counterpart_content"

    @cached_property
    def recipe(self) -> Recipe:
        """Raises TrainingSetError if the training set is another concept's or another base model's."""
        self.training_set.require(self.kind, self.concept.name, self.concept.token)
        require_encoded_by(self.base_model, self.training_set)
        data = self.training_set.digest(self.kind, self._counterparts)
        if self.params.preservation_weight:
            data = digest_of(data, self.training_set.others_without(self.concept.token)[0])
        parents: tuple[str, ...] = ()
        if self.start:
            check_start(self.start, self.kind, self.frame, make_frame(self.base_model, self.frame))
            parents = (weights_digest(self.start),)
        return _recipe(self.kind, self.concept.name, data, self.base_model, self.frame, self.params, self.seed, parents)

    def train(self, io: TrainingIO | None = None) -> tuple[Adapter, History]:
        """The half as an adapter, and the training history."""
        with computing_threads(threads_of_a_half()):
            return self._train(io or TrainingIO())

    def _train(self, io: TrainingIO) -> tuple[Adapter, History]:
        data, recipe = self.training_set, self.recipe
        weight = self.params.preservation_weight
        preserved = (data.others_without(self.concept.token)[1], weight) if weight else None
        rows, held_back = data.hold_back(self.kind, self.params.validation.pictures)
        captions = data.table.loc[data.rows(self.kind).tolist(), "caption"]
        example = captions.iloc[0]
        setup = set_up(data, self.base_model, self.frame, self.params, self.frame.halves, self.seed, preserved, [example])
        own = half_side(self.kind, self.frame.content_side)
        if self.start:
            load_halves(setup.layers, self.start, setup.frame, [own])
        objectives = self._objectives(setup, own, rows)
        history = fit(
            setup.loss,
            objectives,
            self.params,
            joint_loss=self._joint_loss(setup, own) if len(objectives) > 1 else None,
            seed=self.seed,
            device=setup.device,
            checkpoint=io.checkpoint,
            fingerprint=recipe.checkpoint_digest,
            validate=setup.validation(held_back, self.params, self.seed),
            draw=setup.drawing(self.name, io.show),
            log=io.log,
            description=f"{self.kind} break",
        )
        metadata = _metadata(recipe, self.base_model) | {"token": self.concept.token, "noun": self.concept.noun}
        metadata["pictures"] = json.dumps(data.provenance(self.kind, self._counterparts))
        if self.start:
            metadata["parents"] = json.dumps([self.start.metadata.get(URI_KEY, self.params.start_from)])
        return export(setup.layers, setup.frame, metadata | {"example_prompt": example}, only=own), history

    def _objectives(self, setup: TrainingSetup, own: Side, rows: torch.Tensor) -> list[Objective]:
        p = self.params
        found = [Objective(self.kind, setup.side(own), [rows], p.batch_size, p.learning_rate, setup.preservation)]
        if self.training_set.has(self._counterparts):
            partners = [self.training_set.rows(self._counterparts)]
            other = setup.side(_other(own))
            rate = p.counterpart_learning_rate
            found.append(Objective(self._counterparts, other, partners, p.counterpart_batch_size, rate))
        return found

    def _joint_loss(self, setup: TrainingSetup, own: Side) -> JointLoss | None:
        """Both losses in one pass of the denoiser, each routed to its own half."""
        unbatched = setup.loss.family.unbatched_layers(setup.loss.denoiser) & setup.layers.keys()
        if not self.params.one_pass or setup.loss.sizes is not None or unbatched:
            return None
        return partial(setup.loss.joint_loss, before=partial(route_gradients, setup.layers, (own, _other(own))))


@dataclass
class MakeStage:
    """Make (B4M section 3.4): fine-tune both learnable parts, freed of their subspaces, on content, style and (where given)
    their union in equal shares, with Riemannian preconditioning. The frozen parts stay as they are to the bit. Further
    captions are left out: the style's token over the content's pictures would teach that it means their styles."""

    reconstructed: Adapter
    training_set: TrainingSet
    base_model: BaseModelParams
    frame: FrameParams
    params: MakeParams
    seed: int
    guard: Guard | None = None
    """Needed where `params.keep` is `best`."""

    name = "joint_make"

    def __post_init__(self):
        self.training_set = self.training_set.without_variants()
        if (self.guard is None) != (self.params.keep == "last"):
            raise ValueError("make.keep: best needs a guard, last takes none")

    @property
    def concept_name(self) -> str:
        return self.reconstructed.metadata["name"]

    @property
    def _roles(self) -> list[str]:
        return [role for role in ("content", "style", "union") if role != "union" or self.training_set.has("union")]

    @cached_property
    def recipe(self) -> Recipe:
        """Raises TrainingSetError if the training set is another pair's or another base model's."""
        about = self.reconstructed.metadata
        for kind in ("content", "style"):
            self.training_set.require(kind, about[f"{kind}_name"], about[f"{kind}_token"])
        require_encoded_by(self.base_model, self.training_set)
        data = self.training_set.digest(*self._roles)
        parent = weights_digest(self.reconstructed)
        recipe = _recipe("made", about["name"], data, self.base_model, self.frame, self.params, self.seed, (parent,))
        if self.guard is None:
            return recipe
        code = recipe.code | recipe_modules(*GUARD_CODE)
        return dataclasses.replace(recipe, parameters=recipe.parameters | {"guard": self.guard.settings}, code=code)

    def train(self, io: TrainingIO | None = None) -> tuple[Adapter, History]:
        """The made adapter, and the training history."""
        io, recipe, about, p = io or TrainingIO(), self.recipe, self.reconstructed.metadata, self.params
        strata, held_back = [], []
        for role in self._roles:
            trained, held = self.training_set.hold_back(role, p.validation.pictures if role != "union" else 0)
            strata.append(trained)
            held_back.append(held)
        content, style = about["content_token"], about["style_token"]
        both = f"{article(content)} {content} {about['noun']} in {style} style"
        setup = set_up(self.training_set, self.base_model, self.frame, p, "free", self.seed, prompts=[both])
        load_halves(setup.layers, self.reconstructed, setup.frame)
        riemannian = p.optimizer == "riemannian_adamw"
        metadata = {key: about[key] for key in _KEPT} | _metadata(recipe, self.base_model)
        metadata["pictures"] = json.dumps(self.training_set.provenance(*self._roles))
        candidates: dict[int, Adapter] = {0: self.reconstructed}

        def take(step: int) -> None:
            candidates[step] = export(setup.layers, setup.frame, metadata)

        halfway = p.steps // 2 if self.guard else 0
        history = fit(
            setup.loss,
            [Objective("make", setup.side("lora_A") + setup.side("lora_B"), strata, p.batch_size, p.learning_rate)],
            p,
            seed=self.seed,
            device=setup.device,
            checkpoint=io.checkpoint,
            fingerprint=recipe.checkpoint_digest,
            precondition=RiemannianPreconditioner(setup.layers, p.damping) if riemannian else None,
            validate=setup.validation(torch.cat(held_back), p, self.seed),
            draw=setup.drawing("make", io.show),
            log=io.log,
            snapshots={halfway: partial(take, halfway)} if halfway else None,
            description="make",
        )
        take(p.steps)
        last = candidates[p.steps]
        if self.guard is None or share()[0]:  # one process chooses
            return last, history
        step, figures = self.guard.choose(candidates)
        told = "; ".join(f"{_step(at)}: " + ", ".join(f"{k} {v:.2f}" for k, v in own.items()) for at, own in figures.items())
        if step:
            logger.debug("Make: %s is kept (%s)", _step(step), told)
        else:
            logger.warning("Make was no gain (%s): the halves are kept as they were joined", told)
        kept = {KEPT_STEP: str(step), KEPT_FIGURES: json.dumps(figures)}
        return Adapter(candidates[step].tensors, last.metadata | kept, last.lora_config), history


def _step(step: int) -> str:
    return f"step {step}" if step else "joined"


Stage = BreakStage | MakeStage


def _other(side: Side) -> Side:
    return "lora_B" if side == "lora_A" else "lora_A"


def _recipe(
    kind: str,
    name: str,
    data: str,
    base_model: BaseModelParams,
    frame: FrameParams,
    params: TrainParams,
    seed: int,
    parents: tuple[str, ...] = (),
) -> Recipe:
    unused = {"words"} if frame.basis == "none" else None
    recipe: dict[str, Any] = {"frame": frame.model_dump(exclude=unused), "train": params.model_dump(), "seed": seed}
    if base_model.quantization:
        recipe["quantization"] = base_model.quantization
    growing = ("train.steps",) if params.schedule == "constant" else ()
    return Recipe(kind, name, make_frame(base_model, frame).fingerprint, data, recipe, parents, _IGNORED, growing)


def _metadata(recipe: Recipe, base_model: BaseModelParams) -> dict[str, str]:
    family = load_family(base_model)
    own = {"base_model": base_model.path, "resolution": str(base_model.resolution)} | base_model.details()
    return recipe.metadata() | own | family.metadata() | architecture_of(family)
