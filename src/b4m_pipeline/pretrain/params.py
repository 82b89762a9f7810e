"""Typed parameters of the `pretrain` pipeline. Every size is one; conf/base/parameters_pretrain.yml has the values."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from b4m_pipeline.common.config import PathText, Strict

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


def recipe_of(params: BaseModel) -> dict:
    """What decides the result of a training: all parameters but how often it is saved and how it is run."""
    return params.model_dump(exclude={"checkpoint_every", "compile"})


class CorpusParams(Strict):
    """What is drawn, by whom, and what is held out."""

    source: PathText
    """Folder with the npm packages (see `make corpus`)."""
    contents: list[str]
    """CLDR names the denoiser learns."""
    held_out_contents: list[str]
    """CLDR names that no part of the base ever sees."""
    hands: list[str]
    """Sets of drawings, and procedural styles, that the base learns."""
    held_out_hands: list[str]
    """Sets and procedural styles that no part of the base ever sees."""
    procedural_from: str
    """Set whose drawings the procedural styles redraw."""
    unseen_share: float = Field(ge=0, lt=1)
    """Share of the (content, hand) pairs of known parts that is never shown."""
    min_hands: int = Field(ge=1)
    """A further content is shown to VAE and CLIP if so many sets draw it."""
    processes: int = Field(ge=1)
    """Processes that render at once."""


class VaeParams(Strict):
    """AutoencoderKL; len(channels) - 1 halvings."""

    channels: list[Count] = Field(min_length=1)
    """Channels of each level, from the largest resolution down."""
    layers_per_block: Count = 1
    """Residual layers of each level."""
    latent_channels: Count
    """Channels of the latents."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: Count
    """Pictures of a step."""
    learning_rate: Rate = 2e-3
    """Highest learning rate."""
    kl_weight: Weight = 1e-6
    """Weight of the Kullback-Leibler divergence beside the reconstruction's loss."""
    crop_share: float = Field(0.7, ge=0, le=1)
    """Share of the steps, at the start, on crops of half a picture's side: four times as fast, and contours are local."""
    texture_share: float = Field(0.3, ge=0, le=1)
    """Share of the pictures under a random texture, so that materials that it never saw survive it."""
    checkpoint_every: Count
    """Optimizer steps between checkpoints."""


class TextParams(Strict):
    """Tokenizer and the two CLIP text encoders."""

    vocabulary: Count
    """Entries of the tokenizer's vocabulary."""
    max_length: Count
    """Tokens of a prompt, start and end included."""
    widths: tuple[Count, Count] = (128, 256)
    """Widths of the two encoders; the second is that of the pooled output, too."""
    layers: tuple[Count, Count] = (2, 3)
    """Layers of the two encoders."""
    placeholders: list[str]
    """Rare words that stand for "some content" or "some style" in captions: starts for an adapter's new words."""


class CaptionParams(Strict):
    """Shares of captions' forms; the rest says content and style in the standard form."""

    free_form: Share = 0.04
    """Content and style are said in other words than the standard form's."""
    keyword: Share = 0.02
    """One of the content's CLDR keywords is put behind it."""
    alias: Share = 0.05
    """The content is called by an invented word of its own (`text.alias_of`): a word that was never seen is read as a name like
    any other, where the placeholders teach that a rare word says nothing."""
    no_style: Share = 0.05
    """The style is left out."""
    no_content: Share = 0.03
    """The content is left out."""
    placeholder_content: Share = 0.05
    """A placeholder stands for the content."""
    placeholder_style: Share = 0.05
    """A placeholder stands for the style."""
    placeholder_both: Share = 0.03
    """Placeholders stand for both. The made adapter's prompts have two new words: the base must know what a picture is when
    neither is said."""
    empty: Share = 0.1
    """For classifier-free guidance: all embeddings zero, as SDXL's pipeline does for a missing negative prompt."""
    no_pooled: Share = 0.2
    """Pooled embedding zero, tokens kept: teaches cross-attention to carry content, where adapters can reach it."""


class DenoiserParams(Strict):
    """UNet2DConditionModel with text_time conditioning, trained together with its text encoders."""

    channels: list[Count] = Field(min_length=1)
    """Channels of each level, from the largest resolution down."""
    heads: Count = 4
    """Attention heads."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: Count
    """Pictures of a step."""
    muon_learning_rate: Rate = 0.02
    """Muon's highest learning rate, for the UNet's matrices."""
    text_muon_learning_rate: Rate = 0.01
    """The same for the text encoders' matrices. Lower: they lose their contents first when their matrices grow too fast."""
    adamw_learning_rate: Rate = 1e-3
    """AdamW's highest learning rate, for all other weights."""
    weight_decay: Weight = 0.01
    """AdamW's weight decay."""
    muon_weight_decay: Weight = 0.05
    """Muon's weight decay. It bounds the matrices' norms, which orthogonal updates otherwise let grow without end."""
    warmup_steps: int = Field(50, ge=0)
    """Steps at the start in which the learning rates rise."""
    ema: float = Field(ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is kept."""
    noisy_bias: float = Field(1.4, ge=0.1)
    """t = T u^(1/bias): more than 1 draws more of the noisy timesteps, where the prompt decides the content."""
    procedural_weight: Weight = 0.15
    """How often a procedural drawing is shown, against one drawn by hand."""
    coloured: int = Field(ge=0)
    """Further views of each drawing on coloured grounds, with the colour in the caption."""
    view_weights: tuple[Weight, Weight, Weight]
    """Shares of views: on white, on a coloured ground, small."""
    compile: bool = False
    """The UNet by torch.compile: minutes at the start, and steps of half the time on a GPU; no gain on a CPU."""
    checkpoint_every: Count
    """Optimizer steps between checkpoints."""


class FurtherParams(Strict):
    """Going on from a base that is there, on the corpus as it is now: more contents and hands, or only more time."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    peak: float = Field(gt=0, le=1)
    """Factor on the denoiser's learning rates: what is known must not be lost while they rise again."""
    known_weight: float = Field(gt=0)
    """How often a drawing whose content the base was trained on is shown, against one of a new content."""
    contents: list[str]
    """CLDR names besides those of the corpus."""
    captions: CaptionParams | None = None
    """Shares of captions' forms. Null: those of `pretrain.captions`."""


class ClipParams(Strict):
    """Small CLIP: the captioner's eyes and the judge that reads prompts."""

    width: Count = 192
    """Width of the picture encoder."""
    layers: Count = 4
    """Layers of the picture encoder."""
    heads: Count = 4
    """Attention heads of both encoders."""
    patch: Count = 16
    """Side of a patch in pixels."""
    text_width: Count = 128
    """Width of the text encoder."""
    text_layers: Count = 2
    """Layers of the text encoder."""
    embedding: Count = 128
    """Numbers of an embedding."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: Count
    """Pictures of a step."""
    learning_rate: Rate = 1e-3
    """AdamW's highest learning rate, for all other weights."""
    muon_learning_rate: Rate = 0.02
    """Muon's highest learning rate, for the matrices."""
    muon_weight_decay: Weight = 0.05
    """Muon's weight decay."""
    warmup_steps: int = Field(50, ge=0)
    """Steps at the start in which the learning rates rise."""
    checkpoint_every: Count
    """Optimizer steps between checkpoints."""


class ReportParams(Strict):
    """How the finished base is judged (`pretrain_report`)."""

    pairs: int = Field(ge=2)
    """Pairs of each split that are drawn by their plain prompts."""
    sheet_hands: int = Field(18, ge=1)
    """Columns of the sample sheet: so many of the corpus' hands, from the first."""
    contents: list[str]
    """Held-out contents that the base is taught by plain LoRA."""
    hands: list[str]
    """Held-out hands, likewise."""
    shown_hands: list[str]
    """Whose drawings teach a content."""
    shown_contents: int = Field(6, ge=1)
    """So many drawings teach a hand."""
    asked_contents: int = Field(12, ge=1)
    """Other contents that a learnt hand is asked for."""
    samples: int = Field(12, ge=1)
    """Images that are drawn by each LoRA."""
    targets: dict[str, list[str]]
    """Names of LoRA's targets: each list is tried."""
    rank: Count = 32
    """LoRA's rank."""
    steps: Count = 200
    """LoRA's optimizer steps."""
    batch_size: Count = 8
    """LoRA's pictures of a step."""
    learning_rate: Rate = 1e-3
    """LoRA's learning rate."""


class PretrainParams(Strict):
    """Everything the `pretrain` pipeline reads."""

    size: int = Field(ge=32)
    """Pixels a side."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides all randomness of the training."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto: on a GPU where there is one, NVIDIA's (cuda) or Apple's (mps)."""
    output: PathText
    """Where the assembled model is written, in diffusers' format."""
    clip_output: PathText
    """Where the small CLIP is written."""
    checkpoints: PathText
    """Folder of the parts and of the checkpoints of trainings under way."""
    corpus: CorpusParams
    vae: VaeParams
    text: TextParams
    captions: CaptionParams = CaptionParams()
    denoiser: DenoiserParams
    further: FurtherParams | None
    clip: ClipParams
    report: ReportParams
