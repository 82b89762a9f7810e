"""The three stages of Break-for-Make as functions of data: break (train a half), reconstruct, make (train the whole).

They take an encoded training set and parameters and return adapters; they know neither Kedro nor MLflow.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from b4m_pipeline import plp
from b4m_pipeline.adapters import URI_KEY, Adapter
from b4m_pipeline.config import BaseModelParams, BreakParams, ConceptParams, FrameParams, MakeParams, TrainParams
from b4m_pipeline.devices import pick_device
from b4m_pipeline.diffusion import DiffusionLoss, base_model_id, encoder_id, load_family
from b4m_pipeline.preservation import Preservation, require_prompt_layers
from b4m_pipeline.provenance import code_version, digest_of
from b4m_pipeline.riemannian import RiemannianPreconditioner
from b4m_pipeline.trainer import Log, Objective, fit, resolve_precision
from b4m_pipeline.training_set import TrainingSet, TrainingSetError

Kind = Literal["content", "style"]

_KEPT = ("noun", "style_noun", "content_name", "style_name", "content_token", "style_token", "content_side", "parents")


@dataclass
class Workbench:
    """The frozen base model with a PLP adapter in it, and the loss on a training set."""

    frame: plp.Frame
    layers: dict[str, plp.PlpLayer]
    loss: DiffusionLoss
    device: str
    preservation: Preservation | None = None

    def side(self, side: plp.Side) -> list[torch.nn.Parameter]:
        """The learnable parts of all lora_A or of all lora_B."""
        return [layer.a if side == "lora_A" else layer.b for layer in self.layers.values()]


def set_up(
    training_set: TrainingSet,
    base_model: BaseModelParams,
    frame: FrameParams,
    params: TrainParams,
    halves: plp.Halves,
    seed: int,
    others: dict[str, torch.Tensor] | None = None,
) -> Workbench:
    """Load the UNet, make the frame for its layers, inject. others: encoded prompts that are to be left as they are. Raises if
    training set and base model do not belong together."""
    family, device = load_family(base_model), pick_device(params.device)
    if training_set.encoder != encoder_id(base_model):
        raise TrainingSetError(
            f"the training set was encoded by {training_set.encoder}, this run's base model is {encoder_id(base_model)}: "
            "run the ingestion pipeline again"
        )
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    unet = family.load_denoiser(device, dtype[resolve_precision(params.precision, device)])
    layers = plp.find_layers(unet, frame.targets)
    drawn = frame.model_dump(include={"seed", "rank", "alpha", "split", "init", "scale"})
    whole = plp.Frame(**drawn, base_model=base_model_id(base_model), layers=layers)
    inputs = family.prompt_inputs(unet, others) if others else None  # of the base model alone
    adapted = plp.inject(unet, whole, halves, seed)
    unet.to(device).eval()
    loss = DiffusionLoss.of(family, unet, training_set.tensors, params)
    return Workbench(whole, adapted, loss, device, Preservation(adapted, inputs) if inputs else None)


def check_targets(base_model: BaseModelParams, frame: FrameParams, preserving: bool = False) -> None:
    """Build the frame from the base model's configuration alone, without weights: raises what `set_up` would raise for a
    wrong target or rank, before any training starts. preserving: whether a break has a preservation weight."""
    family = load_family(base_model)
    family.check_parts()
    unet = family.empty_denoiser()
    drawn = frame.model_dump(include={"seed", "rank", "alpha", "split", "init", "scale"})
    layers = plp.find_layers(unet, frame.targets)
    plp.Frame(**drawn, base_model="", layers=layers)
    if preserving:
        require_prompt_layers(list(layers), family.prompt_layers(unet))


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
) -> tuple[Adapter, list[dict[str, float]]]:
    """Break (B4M section 3.2): the concept's half learns the concept at the main rate, the other half learns counterparts at
    a lower one, so that the half works with many partners. Each loss touches its own half alone. Without counterparts
    the other half stays as it is. Returns the half as an adapter and the training history."""
    training_set.require(kind, concept.name, concept.token)
    weight, prompts, others = params.preservation_weight, [], None
    if weight:
        prompts, others = training_set.others_without(concept.token)
    bench = set_up(training_set, base_model, frame, params, frame.halves, seed, others)
    own = half_side(kind, frame)
    other: plp.Side = "lora_B" if own == "lora_A" else "lora_A"
    rows = [training_set.rows(kind)]
    penalty = (lambda: weight * bench.preservation()) if bench.preservation else None
    objectives = [Objective(kind, bench.side(own), rows, params.batch_size, params.learning_rate, penalty)]
    counterparts = "counterpart_style" if kind == "content" else "counterpart_content"
    if training_set.has(counterparts):
        rows = [training_set.rows(counterparts)]
        rate, size = params.counterpart_learning_rate, params.counterpart_batch_size
        objectives.append(Objective(counterparts, bench.side(other), rows, size, rate))
    data = training_set.digest(kind, counterparts)
    if prompts:
        data = digest_of(data, prompts)
    recipe = {"frame": frame.model_dump(), "train": params.model_dump(), "seed": seed}
    history = fit(
        bench.loss,
        objectives,
        params,
        seed=seed,
        device=bench.device,
        checkpoint=checkpoint,
        fingerprint=digest_of(kind, concept.name, bench.frame.fingerprint, data, _but_length(recipe)),
        log=log,
        description=f"{kind} break",
    )
    metadata = _metadata(kind, concept.name, base_model, data, recipe)
    metadata |= {"token": concept.token, "noun": concept.noun}
    metadata["pictures"] = json.dumps(training_set.provenance(kind, counterparts))
    captions = training_set.table.loc[training_set.rows(kind).tolist(), "caption"]
    return plp.export(bench.layers, bench.frame, metadata | {"example_prompt": captions.iloc[0]}, only=own), history


def join_halves(content: Adapter, style: Adapter, frame: FrameParams) -> Adapter:
    """Reconstruct (B4M section 3.3): the content's factor beside the style's, bit for bit, whichever side is whose. The
    halves' versions in the registry, where they have one, are the result's parents."""
    half_a, half_b = (content, style) if frame.content_side == "lora_A" else (style, content)
    for half, kind in ((content, "content"), (style, "style")):
        if half.metadata["kind"] != kind:
            raise plp.FrameMismatchError(f"{half.metadata['name']} is a {half.metadata['kind']} adapter, no {kind} half")
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
) -> tuple[Adapter, list[dict[str, float]]]:
    """Make (B4M section 3.4): fine-tune both learnable parts, freed of their subspaces, on content, style and (where given)
    their union in equal shares, with Riemannian preconditioning. The frozen parts stay as they are to the bit. Further
    captions are left out: the style's token over the content's pictures would teach that it means their styles."""
    training_set = training_set.without_variants()
    for kind in ("content", "style"):
        training_set.require(kind, reconstructed.metadata[f"{kind}_name"], reconstructed.metadata[f"{kind}_token"])
    bench = set_up(training_set, base_model, frame, params, "free", seed)
    plp.load_halves(bench.layers, reconstructed, bench.frame)
    roles = [role for role in ("content", "style", "union") if role != "union" or training_set.has("union")]
    strata = [training_set.rows(role) for role in roles]
    whole = bench.side("lora_A") + bench.side("lora_B")
    precondition = None
    if params.optimizer == "riemannian_adamw":
        precondition = RiemannianPreconditioner(bench.layers, params.damping)
    data = training_set.digest(*roles)
    recipe = {"frame": frame.model_dump(), "train": params.model_dump(), "seed": seed}
    parents = [digest_of({k: v.double().sum().item() for k, v in reconstructed.tensors.items()})]
    history = fit(
        bench.loss,
        [Objective("make", whole, strata, params.batch_size, params.learning_rate)],
        params,
        seed=seed,
        device=bench.device,
        checkpoint=checkpoint,
        fingerprint=digest_of("make", parents, bench.frame.fingerprint, data, _but_length(recipe)),
        precondition=precondition,
        log=log,
        description="make",
    )
    metadata = {key: reconstructed.metadata[key] for key in _KEPT}
    metadata |= _metadata("made", reconstructed.metadata["name"], base_model, data, recipe)
    metadata["pictures"] = json.dumps(training_set.provenance(*roles))
    return plp.export(bench.layers, bench.frame, metadata), history


def _metadata(kind: str, name: str, base_model: BaseModelParams, data: str, recipe: dict) -> dict[str, str]:
    own = {"kind": kind, "name": name, "base_model": base_model.path, "data_digest": data}
    own["resolution"] = str(base_model.resolution)
    further = base_model.model_dump(include={"revision", "vae", "variant"}, exclude_none=True)
    own |= {f"base_{key}": value for key, value in further.items()}
    return own | {"params": json.dumps(recipe, sort_keys=True), "code_version": code_version()}


def _but_length(recipe: dict) -> dict:
    """A recipe without what may change when a run goes on: the number of steps and how often it is saved."""
    train = {k: v for k, v in recipe["train"].items() if k not in ("steps", "checkpoint_every")}
    return recipe | {"train": train | ({"steps": recipe["train"]["steps"]} if train["schedule"] != "constant" else {})}
