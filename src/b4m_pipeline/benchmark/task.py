"""One content and one style to be put together, with everything that a method may use for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch

from b4m_pipeline.benchmark.params import CompetitorParams, PairParams
from b4m_pipeline.benchmark.shelf import Shelf
from b4m_pipeline.common.devices import pick_device, resolve_precision
from b4m_pipeline.diffusion.families import base_model_id
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.guard import MakeGuard
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.captions import plain_captions, preserved_prompts
from b4m_pipeline.inputs.folders import list_folders
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, IngestionParams, PreservationParams
from b4m_pipeline.inputs.prepare import Prepared, own_pictures, prepare
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.lora import train_lora
from b4m_pipeline.training.params import BreakParams, LoraParams, MakeParams, RehearsalParams, TrainParams
from b4m_pipeline.training.rehearsal import rehearse, with_rehearsal
from b4m_pipeline.training.stages import Guard


@dataclass(frozen=True)
class Sources:
    """What the training set was made from and how images are measured: make needs it to rehearse and to guard its result."""

    prepared: Prepared = field(repr=False)
    ingestion: IngestionParams
    captioning: CaptioningParams
    evaluation: EvaluationParams


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
    sources: Sources | None = field(default=None, repr=False)
    """None: make can neither rehearse nor be guarded."""

    @property
    def name(self) -> str:
        return f"{self.content.name}-{self.style.name}"

    def budget(self, kind: str) -> TrainParams:
        """Steps and batch of a single concept's LoRA: its break's, counterparts' pictures included, and half of make's."""
        own: BreakParams = self.content_break if kind == "content" else self.style_break
        shown: float = own.steps * own.gradient_accumulation * (own.batch_size + own.counterpart_batch_size)
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

    def rehearsed(self, joined: Adapter, params: RehearsalParams) -> TrainingSet:
        """The training set with images of the content in the style that the joined halves draw."""
        own = self._sources()
        shown = own.prepared.references("content"), own.prepared.references("style")
        folder = rehearse(joined, *shown, self.base_model, params, self.seed, self._guard().prefer)
        given = own.prepared.manifest, own.prepared.pictures, folder
        return with_rehearsal(self.training_set, *given, joined, self.base_model, own.ingestion, own.captioning, None)[0]

    def guard(self) -> Guard:
        """What chooses among make's adapters."""
        return cast(Guard, self._guard())

    def _guard(self) -> MakeGuard:
        own = self._sources()
        shown = own.prepared.references("content"), own.prepared.references("style")
        things = plain_captions(own_pictures(own.prepared.manifest, "style"), own.captioning)
        return MakeGuard(self.base_model, own.evaluation, *shown, things, self.seed)

    def _sources(self) -> Sources:
        if self.sources is None:
            raise ValueError("make.rehearsal and make.keep: best need the pair's pictures")
        return self.sources

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


@dataclass(frozen=True)
class PairInput:
    """A pair's concepts, their prepared pictures, and the prompts that halves are to leave alone."""

    content: ConceptParams
    style: ConceptParams
    prepared: Prepared
    preserved: list[str]


def concepts_of(
    pair: PairParams, content: ConceptParams, style: ConceptParams, counterparts: CounterpartParams
) -> tuple[ConceptParams, ConceptParams, CounterpartParams]:
    """The pair's concepts with the run's tokens and nouns, and the counterparts less those that the pair itself is about."""
    pair_content = ConceptParams(path=pair.content, token=content.token, noun=content.noun, name="")
    pair_style = ConceptParams(path=pair.style, token=style.token, noun=style.noun, name="")
    own = {Path(pair.content).resolve(), Path(pair.style).resolve()}
    kept = {
        field: [concept for concept in getattr(counterparts, field) if Path(concept.path).resolve() not in own]
        for field in ("contents", "styles")
    }
    return pair_content, pair_style, CounterpartParams(**kept)


def prepare_pair(
    pair: PairParams,
    content: ConceptParams,
    style: ConceptParams,
    counterparts: CounterpartParams,
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    preservation: PreservationParams,
    resolution: int,
    seed: int,
) -> PairInput:
    """Read and caption a pair's pictures and its counterparts'. content, style: those of the run, see `concepts_of`."""
    own_content, own_style, partners = concepts_of(pair, content, style, counterparts)
    folders = list_folders(own_content, own_style, partners, None)
    prepared = prepare(folders, resolution, ingestion, captioning, own_style.token)
    return PairInput(own_content, own_style, prepared, preserved_prompts(preservation, own_content, own_style, partners, seed))
