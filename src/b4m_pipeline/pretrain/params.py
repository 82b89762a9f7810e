"""Typed parameters of the `pretrain` pipeline. Every size is one; conf/base/parameters_pretrain.yml has the values."""

from pydantic import BaseModel, Field

from b4m_pipeline.common.config import Strict


def recipe_of(params: BaseModel) -> dict:
    """What decides the result of a training: all parameters but how often it is saved and how it is run."""
    return params.model_dump(exclude={"checkpoint_every", "compile"})


class CorpusParams(Strict):
    """What is drawn, by whom, and what is held out."""

    source: str
    """Folder with the npm packages (see `make corpus`)."""
    contents: list[str]
    """CLDR names the denoiser learns."""
    held_out_contents: list[str]
    hands: list[str]
    held_out_hands: list[str]
    procedural_from: str = "twemoji"
    unseen_share: float = Field(0.1, ge=0, lt=1)
    """Share of the (content, hand) pairs of known parts that is never shown."""
    min_hands: int = Field(8, ge=1)
    """A further content is shown to VAE and CLIP if so many sets draw it."""
    processes: int = Field(2, ge=1)


class VaeParams(Strict):
    """AutoencoderKL; len(channels) - 1 halvings."""

    channels: list[int] = [24, 48, 96, 128]
    layers_per_block: int = 1
    latent_channels: int = 8
    steps: int = Field(ge=1)
    batch_size: int = 32
    learning_rate: float = 2e-3
    kl_weight: float = 1e-6
    crop_share: float = Field(0.7, ge=0, le=1)
    """Share of the steps, at the start, on crops of half a picture's side: four times as fast, and contours are local."""
    texture_share: float = Field(0.3, ge=0, le=1)
    """Share of the pictures under a random texture, so that materials that it never saw survive it."""
    checkpoint_every: int = 200


class TextParams(Strict):
    """Tokenizer and the two CLIP text encoders."""

    vocabulary: int = 2048
    max_length: int = 32
    """Tokens of a prompt, start and end included."""
    widths: tuple[int, int] = (128, 256)
    """The second is that of the pooled output, too."""
    layers: tuple[int, int] = (2, 3)
    placeholders: list[str]
    """Rare words that stand for "some content" or "some style" in captions: starts for an adapter's new words."""


class CaptionParams(Strict):
    """Shares of captions' forms; the rest says content and style in the standard form."""

    free_form: float = 0.04
    keyword: float = 0.02
    alias: float = 0.0
    """The content is called by an invented word of its own (`text.alias_of`): a word that was never seen is read as a name like
    any other, where the placeholders teach that a rare word says nothing."""
    no_style: float = 0.05
    no_content: float = 0.03
    placeholder_content: float = 0.05
    placeholder_style: float = 0.05
    placeholder_both: float = 0.03
    """The made adapter's prompts have two new words: the base must know what a picture is when neither is said."""
    empty: float = 0.1
    """Classifier-free guidance: all embeddings zero, as SDXL's pipeline does for a missing negative prompt."""
    no_pooled: float = 0.2
    """Pooled embedding zero, tokens kept: teaches cross-attention to carry content, where adapters can reach it."""


class DenoiserParams(Strict):
    """UNet2DConditionModel with text_time conditioning, trained together with its text encoders."""

    channels: list[int] = [64, 128, 256]
    heads: int = 4
    steps: int = Field(ge=1)
    batch_size: int = 64
    muon_learning_rate: float = 0.02
    text_muon_learning_rate: float = 0.01
    """Lower: text encoders lose their contents first when their matrices grow too fast."""
    adamw_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    muon_weight_decay: float = 0.05
    """Bounds the matrices' norms, which orthogonal updates otherwise let grow without end."""
    warmup_steps: int = Field(50, ge=0)
    ema: float = 0.998
    noisy_bias: float = 1.4
    """t = T u^(1/bias): more of the noisy steps, where the prompt decides the content."""
    procedural_weight: float = 0.15
    """How often a procedural drawing is shown, against one drawn by hand."""
    coloured: int = 1
    """Further views of each drawing on coloured grounds, with the colour in the caption."""
    view_weights: tuple[float, float, float] = (0.88, 0.09, 0.03)
    """Shares of views: on white, on a coloured ground, small."""
    compile: bool = False
    """The UNet by torch.compile: minutes at the start, and steps of half the time on a GPU; no gain on a CPU."""
    checkpoint_every: int = 100


class FurtherParams(Strict):
    """Going on from a base that is there, on the corpus as it is now: more contents and hands, or only more time."""

    steps: int = Field(ge=1)
    peak: float = Field(0.6, gt=0, le=1)
    """Factor on the denoiser's learning rates: what is known must not be lost while they rise again."""
    known_weight: float = Field(0.6, gt=0)
    """How often a drawing whose content the base was trained on is shown, against one of a new content."""
    contents: list[str] = []
    """CLDR names besides those of the corpus."""
    captions: CaptionParams | None = None
    """Shares of captions' forms, if others than `pretrain.captions`."""


class ClipParams(Strict):
    """Small CLIP: the captioner's eyes and the judge that reads prompts."""

    width: int = 192
    layers: int = 4
    heads: int = 4
    patch: int = 16
    text_width: int = 128
    text_layers: int = 2
    embedding: int = 128
    steps: int = Field(ge=1)
    batch_size: int = 128
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    muon_weight_decay: float = 0.05
    warmup_steps: int = Field(50, ge=0)
    checkpoint_every: int = 100


class ReportParams(Strict):
    """How the finished base is judged (`pretrain_report`)."""

    pairs: int = Field(96, ge=2)
    """Pairs of each split that are drawn by their plain prompts."""
    sheet_hands: int = Field(18, ge=1)
    """Columns of the sample sheet: so many of the corpus' hands, from the first."""
    contents: list[str] = []
    """Held-out contents that the base is taught by plain LoRA."""
    hands: list[str] = []
    """Held-out hands, likewise."""
    shown_hands: list[str] = []
    """Whose drawings teach a content."""
    shown_contents: int = Field(6, ge=1)
    """So many drawings teach a hand."""
    asked_contents: int = Field(12, ge=1)
    """Other contents that a learnt hand is asked for."""
    samples: int = Field(12, ge=1)
    targets: dict[str, list[str]] = {}
    """Names of LoRA's targets: each list is tried."""
    rank: int = 32
    steps: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-3


class PretrainParams(Strict):
    """Everything the `pretrain` pipeline reads."""

    size: int = Field(128, ge=32)
    """Pixels a side."""
    seed: int = 0
    device: str = "auto"
    """auto | cpu | cuda"""
    output: str
    """Where the assembled model is written, in diffusers' format."""
    clip_output: str
    checkpoints: str
    corpus: CorpusParams
    vae: VaeParams
    text: TextParams
    captions: CaptionParams = CaptionParams()
    denoiser: DenoiserParams
    further: FurtherParams | None = None
    clip: ClipParams
    report: ReportParams = ReportParams()
