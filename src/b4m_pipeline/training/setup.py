"""What every stage trains with: the frozen base model with a PLP adapter in it, and the loss on a training set."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from b4m_pipeline.common.devices import DTYPES, pick_device, resolve_precision
from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.common.words import article
from b4m_pipeline.diffusion.families import Family, TimestepSampling, base_model_id, encoder_id, load_family
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.training_set import TrainingSet, TrainingSetError
from b4m_pipeline.method.directions import Directions, tell_apart, word_grid
from b4m_pipeline.method.frame import Frame
from b4m_pipeline.method.layers import Halves, PlpLayer, inject
from b4m_pipeline.method.params import FrameParams, Side
from b4m_pipeline.method.preservation import Preservation, require_prompt_layers
from b4m_pipeline.training.parallel import share
from b4m_pipeline.training.params import TrainParams
from b4m_pipeline.training.previews import Previews

Show = Callable[[Image.Image, str], None]
"""Takes an image drawn during a training, and a name for it."""


@dataclass
class TrainingSetup:
    """The frozen base model with a PLP adapter in it, and the loss on a training set."""

    frame: Frame
    layers: dict[str, PlpLayer]
    loss: DiffusionLoss
    device: str
    preservation: Preservation | None = None
    previews: Previews | None = None

    def side(self, side: Side) -> list[torch.nn.Parameter]:
        """The learnable parts of all lora_A or of all lora_B."""
        return [layer.a if side == "lora_A" else layer.b for layer in self.layers.values()]

    def drawing(self, stage: str, show: Show | None) -> Callable[[int], None] | None:
        """What `fit` calls to have images drawn."""
        if self.previews is None or show is None:
            return None
        previews, denoiser = self.previews, self.loss.denoiser

        def draw(step: int) -> None:
            for index, image in enumerate(previews.draw(denoiser)):
                show(image, f"{stage}/{index}-step-{step:06d}")

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
    halves: Halves,
    seed: int,
    preserved: tuple[dict[str, torch.Tensor], float] | None = None,
    prompts: list[str] | None = None,
) -> TrainingSetup:
    """Load the denoiser, make the frame for its layers, inject. preserved: encoded prompts that are to be left as they are, and
    the weight of that; prompts: those to draw while training, unless the parameters name some."""
    family, device = load_family(base_model), pick_device(params.device)
    previews = None
    if params.samples.every:
        previews = Previews(family, params.samples.prompts or prompts or [], params.samples, seed, device)
    denoiser = family.load_denoiser(device, DTYPES[resolve_precision(params.precision, device)])
    whole = _frame(family, frame, denoiser)
    whole = dataclasses.replace(whole, directions=word_directions(family, denoiser, frame, device))
    inputs = family.prompt_inputs(denoiser, preserved[0]) if preserved else {}  # of the base model alone
    adapted = inject(denoiser, whole, halves, seed)
    denoiser.to(device).eval()
    loss = make_loss(family, denoiser, training_set.tensors, params)
    preservation = Preservation(adapted, inputs, preserved[1]) if preserved else None
    return TrainingSetup(whole, adapted, loss, device, preservation, previews)


def make_loss(family: Family, denoiser: Any, tensors: dict[str, torch.Tensor], params: TrainParams) -> DiffusionLoss:
    """The loss with the parameters of a training stage, which also say whether the denoiser keeps its activations and is
    compiled."""
    if params.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if params.compile:
        denoiser.compile_repeated_blocks(backend=params.compile)
    floor = params.mask_floor if params.masked_loss else None
    return DiffusionLoss(
        family, denoiser, tensors, _sampling(params), params.min_snr_gamma, params.noise_offset, floor, share()
    )


def _sampling(params: TrainParams) -> TimestepSampling:
    return TimestepSampling(params.noisy_bias, params.timestep_sampling, params.timestep_shift)


def _frame(family: Family, frame: FrameParams, model: torch.nn.Module) -> Frame:
    drawn = frame.model_dump(include={"seed", "rank", "alpha", "split", "init", "scale"})
    words = None
    if frame.basis == "words" and frame.words:
        words = digest_of(frame.words.model_dump(), frame.content_side)
    layers = family.find_layers(model, frame.targets)
    return Frame(**drawn, base_model=base_model_id(family.params), layers=layers, words=words)


def word_directions(family: Family, denoiser: Any, frame: FrameParams, device: str = "cpu") -> dict[str, Directions]:
    """The directions of the adapted layers that read nothing but the prompt, {} unless words divide the frame. The half in
    lora_B reads the frozen columns."""
    adapted = set(family.find_layers(denoiser, frame.targets)) & set(family.prompt_layers(denoiser))
    if frame.basis == "none" or frame.words is None or not adapted:
        return {}
    known = frame.words
    contents, styles = word_grid(known.contents, known.styles)
    prompts = []
    for content, style in zip(contents, styles, strict=True):
        word = known.contents[content]
        prompts.append(known.template.format(article=article(word), content=word, style=known.styles[style]))
    shared: dict[int, Directions] = {}
    found = {}
    for layer, inputs in family.prompt_inputs(denoiser, family.encode_prompts(prompts, device)).items():
        if layer not in adapted:
            continue
        if id(inputs) not in shared:
            of_content, of_style = tell_apart(inputs.float().cpu(), contents, styles)
            sides = (of_content, of_style) if frame.content_side == "lora_B" else (of_style, of_content)
            shared[id(inputs)] = Directions(*sides)
        found[layer] = shared[id(inputs)]
    return found


def make_frame(base_model: BaseModelParams, frame: FrameParams) -> Frame:
    """The frame for a base model's layers, from its configuration alone, without weights."""
    family = load_family(base_model)
    return _frame(family, frame, family.empty_denoiser())


def require_encoded_by(base_model: BaseModelParams, training_set: TrainingSet) -> None:
    """Raise TrainingSetError if training set and base model do not belong together."""
    if training_set.encoder != (own := encoder_id(base_model)):
        raise TrainingSetError(
            f"the training set was encoded by {training_set.encoder}, this run's base model is {own}: "
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


def check_objective(base_model: BaseModelParams, stage: str, params: TrainParams) -> None:
    """Raise ObjectiveError, naming the parameter, if a stage's training parameter means nothing for the base model."""
    schedule = load_family(base_model).load_noise_schedule()
    schedule.require(params.min_snr_gamma, params.noise_offset, _sampling(params), f"{stage}.")
