"""Typed parameters of `break_make`. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning stand here."""

import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Side = Literal["lora_A", "lora_B"]


def _plain_name(value: str) -> str:
    """Names become folder, registry and file names: no separators, and no dots, which MLflow's model names must not have."""
    if not value or not all(c.isalnum() or c in "-_" for c in value):
        raise ValueError(f"must be letters, digits, '-' or '_', got {value!r}")
    return value


Name = Annotated[str, AfterValidator(_plain_name)]


class Strict(BaseModel):
    """Refuses unknown names, so that a typo is an error instead of a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelParams(Strict):
    """The text-to-image model that is customised."""

    path: str
    """Local folder in diffusers' format, or a Hugging Face Hub id."""
    revision: str | None = None
    vae: str | None = None
    """Another VAE: path, Hub id or id@revision, e.g. madebyollin/sdxl-vae-fp16-fix."""
    variant: str | None = None
    """Weight variant, e.g. fp16."""
    resolution: int = Field(128, ge=8, multiple_of=8)
    """Pixels a side."""


class FrameParams(Strict):
    """The shared frozen part of all adapters that may be recombined (docs/method.md, "One layer")."""

    seed: int = 0
    rank: int = Field(ge=2)
    alpha: float = Field(gt=0)
    split: float = Field(0.5, gt=0, lt=1)
    order: Literal["blocks", "shuffled"] = "blocks"
    """Which rows of lora_B and columns of lora_A are frozen. blocks: the first, as in the paper. shuffled: by lot for each
    layer, so that both halves read of all text encoders and write to all of attention's heads."""
    init: Literal["exact", "paper"] = "exact"
    scale: float = Field(1.0, gt=0)
    """Factor on F_A and F_B."""
    halves: Literal["orthogonal", "free"] = "orthogonal"
    content_side: Side = "lora_A"
    targets: list[str] = Field(min_length=1)
    """Ends of module names, as PEFT's target_modules."""

    @model_validator(mode="after")
    def _consistent(self) -> "FrameParams":
        if self.halves == "orthogonal" and self.init == "paper":
            raise ValueError("halves: orthogonal needs init: exact (the paper's frame has no complementary subspaces)")
        if self.init == "exact" and self.rank % 2:
            raise ValueError(f"rank must be even for init: exact, got {self.rank}")
        return self


class ConceptParams(Strict):
    """A folder of pictures of one content or one style."""

    path: str = Field(min_length=1)
    name: Name
    """Short name, of the adapter in the registry too. Left out: the folder's."""
    token: str = Field(min_length=1)
    """Rare word that stands for the concept in prompts."""
    noun: str = "emoji"
    """Class noun of a content ("toy", "dog", "emoji"); for a style, of the things it is shown on."""
    licence: str = "unknown"
    source: str = "unknown"

    @model_validator(mode="before")
    @classmethod
    def _name_of_folder(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("path"), str) and data["path"]:
            folder = Path(data["path"]).expanduser().absolute().name
            plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in folder).strip("-")
            return {**data, "name": plain or "unnamed"}
        return data


class CounterpartParams(Strict):
    """The concepts that the other half is trained on during a break (multi-correspondence projection)."""

    contents: list[ConceptParams] = []
    styles: list[ConceptParams] = []


class BucketParams(Strict):
    """Pictures keep about their shape: each is cut to the nearest of those that have as many pixels as the square, or fewer."""

    step: int = Field(64, ge=8)
    """Sides are multiples of this many pixels."""
    max_ratio: float = Field(2.0, gt=1)
    """Longer side over shorter side, at most; what is longer is cut, or padded, to this."""


class IngestionParams(Strict):
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB that transparent pictures are laid on."""
    crop: Literal["center", "pad"] = "center"
    buckets: BucketParams | None = None
    """Null: every picture becomes a square."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Larger pictures are quarantined before they are decoded."""
    near_duplicate_bits: int = Field(3, ge=0, le=64)
    """Perceptual hashes that differ in so few bits or fewer are reported as near-duplicates."""
    content_looks: dict[str, str] | None = None
    """Filters (names in inputs.filters.STYLES) that the content's pictures are redrawn by, and the words that the base
    model knows each look by. See docs/method.md, "What makes halves compose"."""
    look_template: str = "{article} {content} {noun} in {look} style"

    @model_validator(mode="after")
    def _template_fits(self) -> "IngestionParams":
        if not {"content", "look"} <= (used := _fields(self.look_template)) <= {"article", "content", "noun", "look"}:
            raise ValueError(
                f"look_template must hold {{content}} and {{look}}, and may hold article, noun; got {sorted(used)}"
            )
        return self


class CaptioningParams(Strict):
    """Order: sidecar .txt, vision-language model, zero-shot tags, template."""

    vision_language_model: str | None = None
    """Path or Hub id of a BLIP captioner; none by default."""
    clip: str | None = None
    """Path or Hub id of a CLIP model for zero-shot tags."""
    content_words: list[str] = []
    """Words that a style's pictures may be tagged with; empty: the file `tags.json` beside the CLIP model."""
    style_words: list[str] = []
    min_confidence: float = Field(0.25, ge=0, le=1)
    """A tag less probable than this is not used."""
    max_words: int = Field(40, ge=4)
    """Longer texts are cut there, with a warning; the concept's token is never cut off."""
    content_template: str = "{article} {content} {noun}"
    style_template: str = "{article} {content} {noun}"
    style_suffix: str = " in {style} style"
    content_variants: list[str] = []
    """Further captions of every content's picture, with {content} and, if wanted, {style}: the tokens. A half that has met
    the style's token before composes with the style's half. See docs/method.md, "What makes halves compose"."""
    style_variants: list[str] = []
    """Further captions of every style's picture, with {style}, its token, and no content."""

    @model_validator(mode="after")
    def _templates_fit(self) -> "CaptioningParams":
        for template in self.content_variants:
            if "content" not in (used := _fields(template)) or not used <= {"article", "content", "noun", "style"}:
                raise ValueError(f"content_variants must hold {{content}}, and may hold article, noun, style; got {template!r}")
        for template in self.style_variants:
            if "style" not in (used := _fields(template)) or not used <= {"article", "noun", "style"}:
                raise ValueError(f"style_variants must hold {{style}}, and may hold article, noun; got {template!r}")
        for field, needed in {"content_template": "content", "style_template": None, "style_suffix": "style"}.items():
            known = {"style"} if field == "style_suffix" else {"article", "content", "noun"}
            template = getattr(self, field)
            used = _fields(template)
            if (needed and needed not in used) or not used <= known:
                must = f", {{{needed}}} among them" if needed else ""
                raise ValueError(f"{field} may hold the fields {sorted(known)}{must}; got {template!r}")
        return self


class ValidationParams(Strict):
    """The loss on pictures of the concept that are held back from training, at fixed noise and timesteps."""

    pictures: int = Field(0, ge=0)
    """So many of each concept are held back, from the last; 0: no validation."""
    every: int = Field(25, ge=1)
    """Optimizer steps between measurements."""
    timesteps: int = Field(8, ge=1)
    """Evenly spaced ones, the same at every measurement."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the adapter: those of the last step, or of the lowest validation loss."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many measurements in a row without a lower loss. None: never."""

    @model_validator(mode="after")
    def _something_to_measure(self) -> "ValidationParams":
        if not self.pictures and (self.keep == "best" or self.patience):
            raise ValueError("keep: best and patience need pictures to be held back: set pictures")
        return self


class SampleParams(Strict):
    """Pictures that are drawn while a stage is trained, to look at in MLflow."""

    every: int | None = Field(None, ge=1)
    """Optimizer steps between them. None: no pictures."""
    prompts: list[str] = []
    """Empty: the caption of the concept's first picture."""
    steps: int = Field(20, ge=1)
    guidance_scale: float = Field(3.0, ge=0)


class TrainParams(Strict):
    """One training stage."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    """adamw8bit needs the package bitsandbytes, prodigy the package prodigyopt (and learning rates around 1): extra
    `optimizers`."""
    weight_decay: float = Field(0.01, ge=0)
    gradient_accumulation: int = Field(1, ge=1)
    max_grad_norm: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    noisy_bias: float = Field(1.0, ge=0.1)
    """t = T u^(1/bias): 1 draws timesteps evenly, more draws more of the noisy ones."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weigh timesteps by min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556), 5 as a rule. None: all alike."""
    noise_offset: float = Field(0.0, ge=0)
    """Noise that is constant over a channel, so that dark and bright pictures can be learned; 0.05 to 0.1 as a rule."""
    gradient_checkpointing: bool = False
    """Compute activations twice and keep few: less memory, about a third more time."""
    compile: str | None = None
    """torch.compile's backend (inductor) for the UNet's repeated blocks: minutes at the start, faster steps on a GPU."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """The adapter is the exponential moving average of the weights over the steps. None: the weights themselves."""
    masked_loss: bool = False
    """Weigh the loss by the pictures' masks: their alpha channel, or NAME.mask.png beside NAME.jpg (white: counts)."""
    mask_floor: float = Field(0.1, ge=0, le=1)
    """Weight of what the mask leaves out."""
    validation: ValidationParams = ValidationParams()
    samples: SampleParams = SampleParams()
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = Field(25, ge=1)
    """Optimizer steps between checkpoints."""
    keep_checkpoint: bool = False
    """Keep the last finished training's checkpoint, so that a later run with more steps (and schedule: constant) goes on from
    it. As large as three adapters."""


class LoraParams(TrainParams):
    """A plain LoRA and its training, to compare with."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    targets: list[str] = Field(min_length=1)
    """Ends of module names, as PEFT's target_modules."""


class BreakParams(TrainParams):
    """Training of one half, with the other half on counterparts."""

    counterpart_batch_size: int = Field(ge=1)
    counterpart_learning_rate: float = Field(gt=0)
    one_pass: bool = True
    """The concept's pictures and the counterparts' go through the base model together: a faster step, in which the activations
    of both are in memory at once. Which half learns from which does not change. Without effect where pictures are of several
    sizes (buckets)."""
    routing: Literal["exact", "leaking"] = "exact"
    """exact: each loss touches its own half alone. leaking: each also adds its gradient to the other half, as in the released
    code, for comparison only."""
    preservation_weight: float = Field(0.0, ge=0)
    """How much the half is held back from answering to prompts that do not name its concept (see PreservationParams); 0.1 is a
    start, more keeps the other concept purer and learns this one less."""
    separation_weight: float = Field(0.0, ge=0)
    """The same for prompts that name a concept of the other kind by a token: new words look alike to a text encoder, and a half
    that answers to all of them answers to the other concept's too."""


class PreservationParams(Strict):
    """Prompts of words that the base model knows. Each half is to leave those alone that do not name its own concept."""

    contents: list[str] = []
    styles: list[str] = []
    template: str = "{article} {content} {noun} in {style} style"
    number: int = Field(96, ge=1)
    """So many are drawn by lot, the run's own tokens and its counterparts' among the words."""

    @model_validator(mode="after")
    def _consistent(self) -> "PreservationParams":
        if (used := _fields(self.template)) - {"article", "noun"} != {"content", "style"}:
            raise ValueError(f"template must hold {{content}} and {{style}}, and may hold article, noun; got {sorted(used)}")
        if bool(self.contents) != bool(self.styles):
            raise ValueError("name both contents and styles, or neither")
        return self


class MakeParams(TrainParams):
    """Joint fine-tuning of both halves."""

    optimizer: Literal["riemannian_adamw", "adamw", "adamw8bit", "prodigy"] = "riemannian_adamw"  # type: ignore[assignment]
    damping: float = Field(1e-2, gt=0)
    """delta in (B'B + delta I)^-1."""
    union_path: str | None = None
    """Pictures of the content in the style, where they exist. None: content and style pictures only."""


def _fields(template: str) -> set[str]:
    """Names in braces of a format string."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


class EvaluationParams(Strict):
    """What is drawn and how it is judged. Prompts may hold {content} and {style} (the concepts' words), {noun} (the
    content's) and {article} (a or an, for the content)."""

    prompts: list[str] = Field(min_length=1)
    """With {content} and {style} both. The first one is measured against the true drawing; further ones may say more."""
    content_prompt: str
    """For the content's half alone, with {content}."""
    style_prompt: str
    """For the style's half alone, with {style}; {noun} is the style's."""
    samples: int = Field(6, ge=1)
    """Pictures of each prompt by each system; their seeds are seed, seed + 1, ..."""
    steps: int = Field(20, ge=1)
    guidance_scale: float = Field(3.0, ge=0)
    batch_size: int = Field(8, ge=1)
    truth_path: str | None = None
    """Folder with the true drawings of this content in this style, with {content} and {style} for their names; read by
    evaluation alone, and only if it is there."""
    clip: str | None = None
    """Path or Hub id of a CLIP model as second judge, the one that also reads prompts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _prompts_fit(self) -> "EvaluationParams":
        wanted = [(f"prompts[{i}]", prompt, {"content", "style"}) for i, prompt in enumerate(self.prompts)]
        wanted += [("content_prompt", self.content_prompt, {"content"}), ("style_prompt", self.style_prompt, {"style"})]
        for field, prompt, needed in wanted:
            used = _fields(prompt)
            if not needed <= used <= {"content", "style", "noun", "article"}:
                raise ValueError(f"{field} must hold {sorted(needed)} in braces, and may hold noun and article; got {prompt!r}")
        if self.truth_path and not _fields(self.truth_path) <= {"content", "style"}:
            raise ValueError(f"truth_path may hold {{content}} and {{style}} alone in braces; got {self.truth_path!r}")
        return self


class CompetitorParams(Strict):
    """What the methods that ours is compared with may choose. Pictures, layers, rank and number of pictures seen are ours."""

    learning_rate: float = Field(gt=0)
    """Of a plain LoRA on one concept."""
    joint_learning_rate: float = Field(gt=0)
    orthogonal_learning_rate: float = Field(gt=0)
    """Of lora_B where lora_A is frozen (Orthogonal Adaptation)."""
    density: float = Field(0.5, gt=0, le=1)
    """Share of the weights that TIES and DARE keep."""
    np_strength: float = Field(0.5, ge=0)
    """mu of NP-LoRA."""
    zip_steps: int = Field(100, ge=1)
    zip_learning_rate: float = Field(0.01, gt=0)
    zip_overlap_weight: float = Field(0.01, ge=0)
    """lambda of ZipLoRA."""


class PairParams(Strict):
    """A content and a style to be put together."""

    content: str = Field(min_length=1)
    """Folder of its pictures."""
    style: str = Field(min_length=1)

    @property
    def name(self) -> str:
        return f"{Path(self.content).name}-{Path(self.style).name}"


class BenchmarkParams(Strict):
    """Which methods are tried on which pairs."""

    pairs: list[PairParams] = Field(min_length=1)
    first_pairs: int | None = Field(None, ge=1)
    """Only so many of them, from the first, for a quick look."""
    part: str | None = Field(None, pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")
    """K/N: only the K-th of N parts of the pairs, so that N processes with one folder share the work. Pairs of one style, which
    share its trainings, are in one part; one content in several parts is trained in each."""
    methods: list[str] = Field(min_length=1)
    """Names in `baselines.METHODS`."""
    further_methods: list[str] = []
    """Those that are tried only if `further` is true: ablations of ours, and what costs more than it tells."""
    further: bool = False
    ours: str = "ours"
    """The one that all others are compared with, pair by pair."""
    folder: str
    """Where every finished (pair, method) is kept; what is there is not done again."""
    competitors: CompetitorParams

    @model_validator(mode="after")
    def _consistent(self) -> "BenchmarkParams":
        names = [pair.name for pair in self.pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"pairs must have different names (their folders'), got {names}")
        if self.ours not in self.chosen_methods():
            raise ValueError(f"ours is {self.ours!r}, which is not among the methods")
        if self.part and not self.chosen_pairs():
            styles = len({pair.style for pair in self.pairs[: self.first_pairs]})
            raise ValueError(f"part {self.part} holds no pairs: K must be at most N, and N at most {styles}, one a style")
        return self

    def chosen_pairs(self) -> list[PairParams]:
        """Those that this run is about."""
        pairs = self.pairs[: self.first_pairs]
        if not self.part:
            return pairs
        which, parts = (int(number) for number in self.part.split("/"))
        styles = list(dict.fromkeys(pair.style for pair in pairs))
        return [pair for pair in pairs if styles.index(pair.style) % parts == which - 1]

    def chosen_methods(self) -> list[str]:
        """Those that this run is about."""
        return list(dict.fromkeys([*self.methods, *(self.further_methods if self.further else [])]))


class RayParams(Strict):
    """A Ray cluster, and what each job is given of it."""

    address: str | None = None
    """Of a running cluster: "auto", HOST:PORT or ray://HOST:PORT. None: one on this machine, started for the run."""
    workers: int = Field(2, ge=1)
    """Jobs at once; more than the cluster has room for wait."""
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    """Of each job. 1: a GPU each, 0.5: two jobs share one."""
    retries: int = Field(3, ge=0)
    """So often a job is begun again if its worker dies; it goes on from its checkpoint where that is on shared storage."""


class LibraryPairParams(Strict):
    """Names in the library's table."""

    content: Name
    style: Name


class LibraryParams(Strict):
    """A table of contents and styles, and what is made of it."""

    table: str = Field(min_length=1)
    """CSV or YAML with the columns kind (content | style), path and, if wanted, name, noun, licence, source."""
    pairs: Literal["all", "none"] | list[LibraryPairParams] = "all"
    folder: str = Field(min_length=1)
    """Where each adapter is kept, besides the registry."""
    prefix: str = "b4m"
    alias: str = "candidate"
    ray: RayParams | None = None
    """None: one job after another in this process."""


class ComposeParams(Strict):
    """Two halves of one frame, from wherever they are."""

    content: str = Field(min_length=1)
    """models:/NAME@ALIAS or models:/NAME/VERSION in the registry, or a folder."""
    style: str = Field(min_length=1)


class GenerateParams(Strict):
    """Pictures by an adapter, for prompts of one's own."""

    adapter: str | None = None
    """models:/NAME@ALIAS or models:/NAME/VERSION in the registry, or a folder; None: the base model alone."""
    content_scale: float = Field(1.0, ge=0, le=4)
    """Factor on the content's half. 0 takes it away."""
    style_scale: float = Field(1.0, ge=0, le=4)
    prompts: list[str] = []
    prompts_file: str | None = None
    """Further prompts, a line each."""
    negative_prompt: str | None = None
    images_per_prompt: int = Field(4, ge=1)
    """Their seeds are seed, seed + 1, ... for every prompt."""
    steps: int = Field(20, ge=1)
    guidance_scale: float = Field(3.0, ge=0)
    batch_size: int = Field(8, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _something_to_draw(self) -> "GenerateParams":
        if not self.prompts and not self.prompts_file:
            raise ValueError("name what to draw: prompts, or prompts_file with a prompt a line")
        if self.adapter is None and (self.content_scale, self.style_scale) != (1.0, 1.0):
            raise ValueError("content_scale and style_scale need an adapter")
        return self
