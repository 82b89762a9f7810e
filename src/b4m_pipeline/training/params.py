"""Parameters of the training stages. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import PathText, Strict, with_fields


class ValidationParams(Strict):
    """The loss on pictures of the concept that are held back from training, at fixed noise and timesteps."""

    pictures: int = Field(0, ge=0)
    """So many of each concept are held back, from the last; 0: no validation."""
    every: int = Field(25, ge=1)
    """Optimizer steps between measurements."""
    timesteps: int = Field(8, ge=1)
    """Evenly spaced timesteps, the same at every measurement."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the adapter: those of the last step, or of the lowest validation loss."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many measurements in a row without a lower loss. Null: never."""

    @model_validator(mode="after")
    def _something_to_measure(self) -> "ValidationParams":
        if not self.pictures and (self.keep == "best" or self.patience):
            raise ValueError("keep: best and patience need pictures to be held back: set pictures")
        return self


class SampleParams(Strict):
    """Images that are drawn while a stage is trained, to look at in MLflow."""

    every: int | None = Field(None, ge=1)
    """Optimizer steps between them. Null: none are drawn."""
    prompts: list[str] = []
    """What is drawn; empty: the caption of the concept's first picture."""
    steps: int = Field(20, ge=1)
    """Denoising steps of an image."""
    guidance_scale: float = Field(2.0, ge=0, le=100)
    """Strength of guidance, as the base model's pipeline takes it; 1: none, as a rule."""


class TrainParams(Strict):
    """One training stage."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Pictures of the concept, or in `make` of both concepts, in one forward pass."""
    learning_rate: float = Field(gt=0)
    """The optimizer's learning rate, before the schedule."""
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    """adamw8bit needs the package bitsandbytes, prodigy the package prodigyopt (and learning rates around 1): extra
    `optimizers`."""
    weight_decay: float = Field(0.01, ge=0)
    """The optimizer's decoupled weight decay."""
    gradient_accumulation: int = Field(1, ge=1)
    """Batches whose gradients are averaged for one step."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of a larger norm are scaled down to this."""
    warmup_steps: int = Field(0, ge=0)
    """Steps at the start in which the learning rate rises linearly."""
    schedule: Literal["constant", "cosine"]
    """How the learning rate goes on: as it is, or down to zero along a cosine."""
    noisy_bias: float = Field(ge=0.1)
    """t = T u^(1/bias): 1 draws timesteps evenly, more draws more of the noisy ones."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """How timesteps are drawn before `noisy_bias` and the shift: evenly, or most in the middle, as SD 3 was trained."""
    timestep_shift: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """Draw more of the noisy timesteps, t -> a t / (1 + (a - 1) t): a number (other trainers' flow or timestep shift), auto: as
    the scheduler of a base model of rectified flow does for the resolution. Null: not shifted."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weigh timesteps by min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556), 5 as a rule. Null: all alike. Not
    for rectified flow."""
    noise_offset: float = Field(0.0, ge=0)
    """Noise that is constant over a channel, so that dark and bright pictures can be learned; 0.05 to 0.1 as a rule. Not for
    rectified flow, which needs none."""
    gradient_checkpointing: bool = False
    """Compute activations twice and keep few: less memory, about a third more time."""
    compile: str | None = None
    """torch.compile's backend (inductor) for the denoiser's repeated blocks: minutes at the start, faster steps on a GPU. Null:
    not compiled."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """The adapter is the exponential moving average of the weights over the steps. Null: the weights themselves."""
    masked_loss: bool = False
    """Weigh the loss by the pictures' masks: their alpha channel, or NAME.mask.png beside NAME.jpg (white: counts)."""
    mask_floor: float = Field(0.1, ge=0, le=1)
    """Weight of what the mask leaves out."""
    validation: ValidationParams = ValidationParams()
    samples: SampleParams = SampleParams()
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Number format of the frozen base model and of activations; auto: bf16 where the hardware multiplies it, no: float32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto: on a GPU where there is one, NVIDIA's (cuda) or Apple's (mps)."""
    processes: int = Field(1, ge=1, le=64)
    """GPUs that share each batch, a process each: the batch sizes are those of all together and must be divisible by it. The
    losses are those of one process. On a CPU it serves to try this out."""
    checkpoint_every: int = Field(25, ge=1)
    """Optimizer steps between checkpoints."""
    keep_checkpoint: bool = False
    """Keep the last finished training's checkpoint, so that a later run with more steps (and schedule: constant) goes on from
    it. As large as three adapters."""


class LoraParams(TrainParams):
    """A plain LoRA and its training, to compare with."""

    rank: int = Field(ge=1)
    """Rank of the adapter."""
    alpha: float = Field(gt=0)
    """The adapter is scaled by alpha / rank."""
    targets: list[str] = Field(min_length=1)
    """Ends of module names, as PEFT's target_modules."""


class BreakParams(TrainParams):
    """Training of one half, with the other half on counterparts."""

    counterpart_batch_size: int = Field(ge=1)
    """Pictures of the counterparts in one forward pass."""
    counterpart_learning_rate: float = Field(gt=0)
    """Learning rate of the other half, which learns the counterparts."""
    one_pass: bool = True
    """The concept's pictures and the counterparts' go through the base model together: a faster step, in which the activations
    of both are in memory at once. Which half learns from which does not change. Without effect where pictures are of several
    sizes (buckets)."""
    start_from: str | None = None
    """A half to go on from, of the same kind, base model and frame: models:/NAME@ALIAS or models:/NAME/VERSION in the registry,
    or a folder. Null: from the beginning."""
    preservation_weight: float = Field(ge=0)
    """How much the half is held back from answering to prompts that do not name its concept (see `preservation`); 0.1 is a
    start, more keeps the other concept purer and learns this one less."""


class RehearsalParams(Strict):
    """Images that the joined halves draw before make, which trains on them as pictures of the content in the style."""

    images: int = Field(12, ge=1, le=10_000)
    """So many are drawn."""
    prompts: list[Annotated[str, with_fields("content style", "noun article")]] = Field(
        ["{article} {content} {noun} in {style} style"], min_length=1
    )
    """What is drawn, in turn, with {content}, {style} and, if wanted, {article} and {noun}."""
    start: Literal["best", "pictures", "noise"] = "best"
    """`pictures`: each drawing begins with one of the content's pictures in the colours of one of the style's, under noise.
    `noise`: with noise alone, so that shape and colours are what the joined halves make of the prompt. `best`: both are drawn,
    and those are kept that keep more of content and style, as the guard over make measures it."""
    strength: float = Field(0.65, gt=0, le=1)
    """For what share of the denoising steps a picture is drawn over: more is nearer to `noise`, less to the picture."""
    steps: int = Field(20, ge=1)
    """Denoising steps of an image."""
    guidance_scale: float = Field(2.0, ge=0, le=100)
    """Strength of guidance, as the base model's pipeline takes it; 1: none, as a rule."""
    batch_size: int = Field(12, ge=1)
    """Images that are drawn at once."""
    folder: PathText = "data/05_model_input/rehearsals"
    """Where they are kept, in a folder for each pair, base model and setting. Delete what is bad, add your own pictures of the
    content in the style, and run joint_make again."""


class MakeParams(TrainParams):
    """Joint fine-tuning of both halves."""

    optimizer: Literal["riemannian_adamw", "adamw", "adamw8bit", "prodigy"] = "riemannian_adamw"  # type: ignore[assignment]
    """`riemannian_adamw` is `adamw` on preconditioned gradients; the others see plain ones."""
    damping: float = Field(1e-2, gt=0)
    """delta in the preconditioner (B'B + delta I)^-1; larger is nearer to plain gradients."""
    union_path: PathText | None = None
    """Folder with pictures of the content in the style, where they exist. Null: the pictures of content and style only."""
    rehearsal: RehearsalParams | None = None
    """Pictures of the content in the style that the joined halves draw. Null: none."""
    keep: Literal["best", "last"]
    """`best`: a few drawings by the joined halves, half-way and at the end are measured, and the adapter is what keeps most of
    both content and style, even if that is the joined halves. `last`: what the last step gives, unmeasured."""


class ZipParams(Strict):
    """ZipLoRA's merge, which learns on the pictures of content and style; all else is as in `make`."""

    steps: int = Field(100, ge=1)
    """Optimizer steps."""
    learning_rate: float = Field(1e-2, gt=0)
    """Learning rate of the factors."""
    overlap_weight: float = Field(1e-2, ge=0)
    """lambda: weight of the overlap of the two LoRAs."""
