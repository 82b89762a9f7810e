"""The three stages of Break-for-Make as functions of data: break (train a half), reconstruct, make (train the whole).

They take an encoded training set and parameters and return adapters; they know neither Kedro nor MLflow.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from b4m_pipeline.common.config import BaseModelParams, BreakParams, ConceptParams, FrameParams, MakeParams, TrainParams
from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.provenance import code_version, digest_of
from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.families import base_model_id, encoder_id, load_family
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.diffusion.previews import Previews
from b4m_pipeline.inputs.captioning import article
from b4m_pipeline.inputs.training_set import TrainingSet, TrainingSetError
from b4m_pipeline.method import plp
from b4m_pipeline.method.adapter import URI_KEY, Adapter
from b4m_pipeline.method.preservation import Preservation, require_prompt_layers
from b4m_pipeline.method.riemannian import RiemannianPreconditioner
from b4m_pipeline.training.trainer import Log, Objective, fit, resolve_precision

Kind = Literal["content", "style"]
Known = Callable[[str, str, str], Adapter | None]
"""(kind, name, recipe digest) -> an adapter that was made from the same, if there is one."""
Show = Callable[[Image.Image, str], None]
"""Takes a picture drawn during a training, and a name for it."""
History = list[dict[str, float]]

RECIPE_KEY = "recipe_digest"
"""Metadata of a trained adapter: digest of all that it was made from."""
_WITHOUT_EFFECT = ("checkpoint_every", "keep_checkpoint", "samples")
_KEPT = ("noun", "style_noun", "content_name", "style_name", "content_token", "style_token", "content_side", "parents")


@dataclass
class Workbench:
    """The frozen base model with a PLP adapter in it, and the loss on a training set."""

    frame: plp.Frame
    layers: dict[str, plp.PlpLayer]
    loss: DiffusionLoss
    device: str
    preservation: Preservation | None = None
    previews: Previews | None = None

    def side(self, side: plp.Side) -> list[torch.nn.Parameter]:
        """The learnable parts of all lora_A or of all lora_B."""
        return [layer.a if side == "lora_A" else layer.b for layer in self.layers.values()]

    def drawing(self, stage: str, show: Show | None) -> Callable[[int], None] | None:
        """What `fit` calls to have pictures drawn."""
        if self.previews is None or show is None:
            return None
        previews, unet = self.previews, self.loss.unet

        def draw(step: int) -> None:
            for index, picture in enumerate(previews.draw(unet)):
                show(picture, f"{stage}/{index}-step-{step:06d}")

        return draw

    def validation(self, rows: torch.Tensor, params: TrainParams, seed: int) -> Callable[[], float] | None:
        """What `fit` calls to measure held-back rows; None if there are none."""
        if not len(rows):
            return None
        return lambda: self.loss.validation(rows, params.validation.timesteps, torch_generator(seed, "validation"))


def set_up(
    training_set: TrainingSet,
    base_model: BaseModelParams,
    frame: FrameParams,
    params: TrainParams,
    halves: plp.Halves,
    seed: int,
    others: list[tuple[dict[str, torch.Tensor], float]] | None = None,
    prompts: list[str] | None = None,
) -> Workbench:
    """Load the UNet, make the frame for its layers, inject. others: groups of encoded prompts that are to be left as they are,
    with weights; prompts: those to draw while training, unless the parameters name some."""
    family, device = load_family(base_model), pick_device(params.device)
    previews = None
    if params.samples.every:
        previews = Previews(family, params.samples.prompts or prompts or [], params.samples, seed, device)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    unet = family.load_denoiser(device, dtype[resolve_precision(params.precision, device)])
    layers = plp.find_layers(unet, frame.targets)
    drawn = frame.model_dump(include={"seed", "rank", "alpha", "split", "order", "init", "scale"})
    whole = plp.Frame(**drawn, base_model=base_model_id(base_model), layers=layers)
    inputs = [(family.prompt_inputs(unet, group), weight) for group, weight in others or []]  # of the base model alone
    adapted = plp.inject(unet, whole, halves, seed)
    unet.to(device).eval()
    loss = DiffusionLoss.of(family, unet, training_set.tensors, params)
    return Workbench(whole, adapted, loss, device, Preservation(adapted, inputs) if inputs else None, previews)


def make_frame(base_model: BaseModelParams, frame: FrameParams) -> plp.Frame:
    """The frame for a base model's layers, from its configuration alone, without weights."""
    drawn = frame.model_dump(include={"seed", "rank", "alpha", "split", "order", "init", "scale"})
    layers = plp.find_layers(load_family(base_model).empty_denoiser(), frame.targets)
    return plp.Frame(**drawn, base_model=base_model_id(base_model), layers=layers)


def _require_encoded_by(base_model: BaseModelParams, training_set: TrainingSet) -> None:
    """Raise if training set and base model do not belong together."""
    if training_set.encoder != encoder_id(base_model):
        raise TrainingSetError(
            f"the training set was encoded by {training_set.encoder}, this run's base model is {encoder_id(base_model)}: "
            "run the ingestion pipeline again"
        )


def check_targets(base_model: BaseModelParams, frame: FrameParams, preserving: bool = False) -> None:
    """Build the frame from the base model's configuration alone, without weights: raises what `set_up` would raise for a
    wrong target or rank, before any training starts. preserving: whether a break has a preservation weight."""
    family = load_family(base_model)
    family.check_parts()
    whole = make_frame(base_model, frame)
    if preserving:
        require_prompt_layers(list(whole.layers), family.prompt_layers(family.empty_denoiser()))


def half_side(kind: Kind, frame: FrameParams) -> plp.Side:
    """Which factor a kind of concept is trained in. The released code gives content lora_A; the paper's figure shows the
    reverse, so it is a parameter."""
    other: plp.Side = "lora_B" if frame.content_side == "lora_A" else "lora_A"
    return frame.content_side if kind == "content" else other


def train_half(
    kind: Kind,
    training_set: TrainingSet,
    base_model: BaseModelParams,
    frame: FrameParams,
    concept: ConceptParams,
    params: BreakParams,
    seed: int,
    checkpoint: Path | None = None,
    log: Log | None = None,
    known: Known | None = None,
    show: Show | None = None,
) -> tuple[Adapter, History | None]:
    """Break (B4M section 3.2): the concept's half learns the concept at the main rate, the other half learns counterparts at
    a lower one, so that the half works with many partners. Each loss touches its own half alone. Without counterparts
    the other half stays as it is. Returns the half as an adapter and the training history, None if `known` had the adapter."""
    training_set.require(kind, concept.name, concept.token)
    _require_encoded_by(base_model, training_set)
    prompts, others = [], []
    if params.preservation_weight or params.separation_weight:
        prompts, quiet = training_set.others_without(concept.token)
        others.append((quiet, params.preservation_weight))
    if params.separation_weight:
        named, foreign = training_set.others_naming("style" if kind == "content" else "content")
        others.append((foreign, params.separation_weight))
        prompts = [*prompts, *named]
    counterparts = "counterpart_style" if kind == "content" else "counterpart_content"
    data = training_set.digest(kind, counterparts)
    if prompts:
        data = digest_of(data, prompts)
    recipe = {"frame": frame.model_dump(), "train": params.model_dump(), "seed": seed}
    identity = _identity(kind, concept.name, make_frame(base_model, frame).fingerprint, data, recipe)
    if known and (found := known(kind, concept.name, identity)):
        return found, None
    rows, held_back = training_set.hold_back(kind, params.validation.pictures)
    captions = training_set.table.loc[training_set.rows(kind).tolist(), "caption"]
    bench = set_up(training_set, base_model, frame, params, frame.halves, seed, others, [captions.iloc[0]])
    own = half_side(kind, frame)
    other: plp.Side = "lora_B" if own == "lora_A" else "lora_A"
    objectives = [Objective(kind, bench.side(own), [rows], params.batch_size, params.learning_rate, bench.preservation)]
    if training_set.has(counterparts):
        rate, size = params.counterpart_learning_rate, params.counterpart_batch_size
        objectives.append(Objective(counterparts, bench.side(other), [training_set.rows(counterparts)], size, rate))
        if params.routing == "leaking":
            objectives[0].leaks_to, objectives[1].leaks_to = bench.side(other), bench.side(own)
    together = None
    if params.one_pass and len(objectives) > 1 and bench.loss.sizes is None:
        apart = partial(plp.teach_apart, bench.layers, (own, other)) if params.routing == "exact" else None
        together = partial(bench.loss.together, apart=apart)
    history = fit(
        bench.loss,
        objectives,
        params,
        together=together,
        seed=seed,
        device=bench.device,
        checkpoint=checkpoint,
        fingerprint=digest_of(kind, concept.name, bench.frame.fingerprint, data, _but_length(recipe), code_version()),
        validate=bench.validation(held_back, params, seed),
        draw=bench.drawing(f"{kind}_break", show),
        log=log,
        description=f"{kind} break",
    )
    metadata = _metadata(kind, concept.name, base_model, data, recipe, identity)
    metadata |= {"token": concept.token, "noun": concept.noun}
    metadata["pictures"] = json.dumps(training_set.provenance(kind, counterparts))
    return plp.export(bench.layers, bench.frame, metadata | {"example_prompt": captions.iloc[0]}, only=own), history


def join_halves(content: Adapter, style: Adapter, frame: FrameParams) -> Adapter:
    """Reconstruct (B4M section 3.3): the content's factor beside the style's, bit for bit, whichever side is whose. The
    halves' versions in the registry, where they have one, are the result's parents."""
    half_a, half_b = (content, style) if frame.content_side == "lora_A" else (style, content)
    for half, kind in ((content, "content"), (style, "style")):
        if half.metadata["kind"] != kind:
            raise plp.FrameMismatchError(f"{half.metadata['name']} is a {half.metadata['kind']} adapter, no {kind} half")
    ways = [json.loads(half.metadata["params"])["frame"]["halves"] for half in (content, style)]
    if ways[0] != ways[1]:
        raise plp.FrameMismatchError(
            f"{content.metadata['name']} was trained with frame.halves {ways[0]}, {style.metadata['name']} with {ways[1]}: "
            "the two would not add up; train both one way"
        )
    kept = ("base_model", "resolution", "params", "code_version", "noun", "base_revision", "base_vae", "base_variant")
    metadata = {key: content.metadata[key] for key in kept if key in content.metadata}
    metadata |= {
        "kind": "reconstructed",
        "name": f"{content.metadata['name']}-{style.metadata['name']}",
        "data_digest": digest_of(content.metadata["data_digest"], style.metadata["data_digest"]),
        "content_side": frame.content_side,
        "style_noun": style.metadata["noun"],
        "parents": json.dumps([half.metadata[URI_KEY] for half in (content, style) if URI_KEY in half.metadata]),
    }
    recipes = [half.metadata.get(RECIPE_KEY) for half in (content, style)]
    if all(recipes):
        metadata[RECIPE_KEY] = digest_of("reconstructed", recipes, code_version())
    for kind, half in (("content", content), ("style", style)):
        metadata |= {f"{kind}_name": half.metadata["name"], f"{kind}_token": half.metadata["token"]}
    return plp.reconstruct(half_a, half_b, metadata)


def train_make(
    reconstructed: Adapter,
    training_set: TrainingSet,
    base_model: BaseModelParams,
    frame: FrameParams,
    params: MakeParams,
    seed: int,
    checkpoint: Path | None = None,
    log: Log | None = None,
    known: Known | None = None,
    show: Show | None = None,
) -> tuple[Adapter, History | None]:
    """Make (B4M section 3.4): fine-tune both learnable parts, freed of their subspaces, on content, style and (where given)
    their union in equal shares, with Riemannian preconditioning. The frozen parts stay as they are to the bit. Further
    captions are left out: the style's token over the content's pictures would teach that it means their styles. Returns the
    adapter and the training history, None if `known` had the adapter."""
    training_set = training_set.without_variants()
    for kind in ("content", "style"):
        training_set.require(kind, reconstructed.metadata[f"{kind}_name"], reconstructed.metadata[f"{kind}_token"])
    _require_encoded_by(base_model, training_set)
    roles = [role for role in ("content", "style", "union") if role != "union" or training_set.has("union")]
    data = training_set.digest(*roles)
    recipe = {"frame": frame.model_dump(), "train": params.model_dump(), "seed": seed}
    parents = [digest_of({k: v.double().sum().item() for k, v in reconstructed.tensors.items()})]
    name = reconstructed.metadata["name"]
    identity = _identity("made", name, make_frame(base_model, frame).fingerprint, [parents, data], recipe)
    if known and (found := known("made", name, identity)):
        return found, None
    strata, held_back = [], []
    for role in roles:
        trained, held = training_set.hold_back(role, params.validation.pictures if role != "union" else 0)
        strata.append(trained)
        held_back.append(held)
    content, style = (reconstructed.metadata[f"{kind}_token"] for kind in ("content", "style"))
    both = f"{article(content)} {content} {reconstructed.metadata['noun']} in {style} style"
    bench = set_up(training_set, base_model, frame, params, "free", seed, prompts=[both])
    plp.load_halves(bench.layers, reconstructed, bench.frame)
    whole = bench.side("lora_A") + bench.side("lora_B")
    precondition = None
    if params.optimizer == "riemannian_adamw":
        precondition = RiemannianPreconditioner(bench.layers, params.damping)
    history = fit(
        bench.loss,
        [Objective("make", whole, strata, params.batch_size, params.learning_rate)],
        params,
        seed=seed,
        device=bench.device,
        checkpoint=checkpoint,
        fingerprint=digest_of("make", parents, bench.frame.fingerprint, data, _but_length(recipe), code_version()),
        precondition=precondition,
        validate=bench.validation(torch.cat(held_back), params, seed),
        draw=bench.drawing("make", show),
        log=log,
        description="make",
    )
    metadata = {key: reconstructed.metadata[key] for key in _KEPT}
    metadata |= _metadata("made", name, base_model, data, recipe, identity)
    metadata["pictures"] = json.dumps(training_set.provenance(*roles))
    return plp.export(bench.layers, bench.frame, metadata), history


def _identity(kind: str, name: str, frame: str, data: object, recipe: dict) -> str:
    """Digest of all that an adapter is made from, the code's version included: equal ones need not be trained twice."""
    train = {key: value for key, value in recipe["train"].items() if key not in _WITHOUT_EFFECT}
    return digest_of(kind, name, frame, data, recipe | {"train": train}, code_version())


def _metadata(kind: str, name: str, base_model: BaseModelParams, data: str, recipe: dict, identity: str) -> dict[str, str]:
    own = {"kind": kind, "name": name, "base_model": base_model.path, "data_digest": data, RECIPE_KEY: identity}
    own["resolution"] = str(base_model.resolution)
    further = base_model.model_dump(include={"revision", "vae", "variant"}, exclude_none=True)
    own |= {f"base_{key}": value for key, value in further.items()}
    return own | {"params": json.dumps(recipe, sort_keys=True), "code_version": code_version()}


def _but_length(recipe: dict) -> dict:
    """A recipe without what may change when a run goes on: the number of steps and how often it is saved."""
    train = {k: v for k, v in recipe["train"].items() if k not in ("steps", *_WITHOUT_EFFECT)}
    return recipe | {"train": train | ({"steps": recipe["train"]["steps"]} if train["schedule"] != "constant" else {})}
