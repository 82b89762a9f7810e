"""Parameters of folders, captions and preservation. Values stand in `conf/<env>/parameters*.yml`, bounds and meaning here."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from b4m_pipeline.common.config import LARGEST_SIDE, Name, PathText, Strict, Words, with_fields

Shade = Annotated[int, Field(ge=0, le=255)]
"""Of red, green or blue."""


class ConceptParams(Strict):
    """A folder of pictures of one content or one style."""

    path: PathText
    """Folder of its pictures."""
    name: Name = ""
    """Short name, of the adapter in the registry too: letters, digits, - and _. Left out: the folder's."""
    token: Words
    """Rare word that stands for the concept in prompts."""
    noun: Words = "emoji"
    """Class noun of a content ("toy", "dog", "emoji"); for a style, of the things it is shown on."""
    licence: str = "unknown"
    """Licence of the pictures, for those that `attribution.csv` in their folder does not name; kept with the adapter."""
    source: str = "unknown"
    """Where the pictures are from, likewise."""

    @model_validator(mode="before")
    @classmethod
    def _name_of_folder(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name") and isinstance(data.get("path"), str) and data["path"]:
            try:
                folder = Path(data["path"]).expanduser().absolute().name
            except RuntimeError:  # nobody's home: the path itself is refused
                folder = ""
            plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in folder).strip("-")
            return {**data, "name": plain or "unnamed"}
        return data


class WordParams(Strict):
    """A content or a style that the base model knows by a word."""

    word: Words
    """What the base model calls it: dog, watercolor."""
    token: Words
    """Rare word that stands for it in captions."""


class DrawnParams(Strict):
    """Counterparts that the base model draws, by words that it knows."""

    contents: list[WordParams] = []
    """Each is drawn in all the styles in turn."""
    styles: list[WordParams] = []
    """Each is drawn with all the contents in turn."""
    images: int = Field(6, ge=1, le=10_000)
    """So many of each word."""
    template: Annotated[str, with_fields("content style", "article")] = "{article} {content} in {style} style"
    """The prompts, with {content}, {style} and, if wanted, {article}."""
    steps: int = Field(20, ge=1)
    """Denoising steps of an image."""
    guidance_scale: float = Field(2.0, ge=0, le=100)
    """Strength of classifier-free guidance; 1: none."""
    batch_size: int = Field(12, ge=1)
    """Images that are drawn at once."""
    resolution: int | None = Field(None, ge=8, le=LARGEST_SIDE, multiple_of=8)
    """Pixels a side that they are drawn with; training has them in `base_model.resolution`. Null: the same."""
    seed: int = Field(0, strict=True, ge=0, lt=2**31)
    """Of the drawings alone, so that runs with other seeds share them."""
    folder: PathText = "data/05_model_input/counterparts"
    """Where they are kept, in a folder for each word, base model and setting. What is deleted there stays deleted."""

    @model_validator(mode="after")
    def _different(self) -> "DrawnParams":
        for what in ("word", "token"):
            found = [getattr(each, what).strip().casefold() for each in (*self.contents, *self.styles)]
            if twice := [each for each in found if found.count(each) > 1]:
                raise ValueError(f"has the {what} {twice[0]!r} twice: contents and styles must all have {what}s of their own")
        return self


class CounterpartParams(Strict):
    """The concepts that the other half is trained on during a break (multi-correspondence projection)."""

    source: Literal["folders", "drawn"] = "folders"
    """folders: the pictures of `contents` and `styles`. drawn: pictures that the base model draws of the words in `drawn`;
    `contents` and `styles` are empty then."""
    contents: list[ConceptParams]
    """Other contents, which the style is trained beside."""
    styles: list[ConceptParams]
    """Other styles, which the content is trained beside."""
    drawn: DrawnParams = DrawnParams()

    @model_validator(mode="after")
    def _one_source(self) -> "CounterpartParams":
        if self.source == "folders":
            return self
        if self.contents or self.styles:
            raise ValueError(
                "source is drawn, and contents or styles name folders: set source: folders to use these, or both lists to []"
            )
        if not (self.drawn.contents and self.drawn.styles):
            raise ValueError("source is drawn: name words in drawn.contents and in drawn.styles, each with its token")
        return self


class BucketParams(Strict):
    """Pictures keep about their shape: each is cut to the nearest of those that have as many pixels as the square, or fewer."""

    step: int = Field(64, ge=8, le=LARGEST_SIDE)
    """Sides are multiples of this many pixels."""
    max_ratio: float = Field(2.0, gt=1, le=16)
    """Longer side over shorter side, at most; what is longer is cut, or padded, to this."""


class DrawnLooksParams(Strict):
    """The content's pictures once more, redrawn by the base model. What that is worth has not been measured."""

    styles: list[str] = Field(["watercolor", "oil painting", "pencil sketch", "low poly"], min_length=1)
    """What the base model calls them. Each is one picture, the content's take turns."""
    template: Annotated[str, with_fields("look noun", "article")] = "{article} {noun} in {look} style"
    """The prompts, with {look}, {noun} and, if wanted, {article}: the base model does not know the token yet."""
    strength: float = Field(0.6, gt=0, le=1)
    """For what share of the denoising steps a picture is drawn over: more changes more of it, 1 keeps nothing."""
    steps: int = Field(20, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(2.0, ge=0)
    """Strength of guidance, as the base model's pipeline takes it; 1: none, as a rule."""
    resolution: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels a side of a square that they are redrawn at, others have as many; training has `base_model.resolution`. Null: the
    same."""
    seed: int = Field(0, strict=True, ge=0, lt=2**31)
    """Of the redrawing alone."""
    folder: str = "data/05_model_input/looks"
    """Where they are kept. What is deleted there is drawn again; another picture may be put in the place of one."""

    @model_validator(mode="after")
    def _once_each(self) -> "DrawnLooksParams":
        if twice := [style for style in self.styles if self.styles.count(style) > 1]:
            raise ValueError(f"styles name {twice[0]!r} twice")
        return self


class IngestionParams(Strict):
    """How pictures are checked and cut, and in which looks the content's are shown."""

    background: tuple[Shade, Shade, Shade]
    """RGB that transparent pictures are laid on, 0 to 255 each."""
    crop: Literal["center", "pad"]
    """What becomes of a picture of another shape: cut to its middle, or padded with the background."""
    buckets: BucketParams | None
    """Shapes besides the square. Null: every picture becomes a square."""
    max_pixels: int = Field(ge=1)
    """Larger pictures are quarantined before they are decoded."""
    max_enlargement: float | None = Field(None, ge=1)
    """Pictures whose sides would be enlarged more times than this are quarantined: 2 leaves out those smaller than half the
    resolution. Null: none is; those that are enlarged more than twice are counted in a warning."""
    links_into: list[PathText] = []
    """Folders that links among the pictures may lead to, such as the store of a data-versioning program. Always allowed: links
    within the folder itself, and those of a snapshot in the Hub's cache."""
    near_duplicate_bits: int = Field(ge=0, le=64)
    """Pictures whose perceptual hashes differ in so many bits or fewer are reported as near-duplicates."""
    content_looks: dict[str, Words] | None
    """Filters (names in `inputs.filters.STYLES`) that the content's pictures are redrawn by, and the words that the base
    model knows each look by. Null: none."""
    drawn_looks: DrawnLooksParams | None = None
    """Looks that the base model draws of the content's pictures: for photographs. Null: none."""
    look_template: Annotated[str, with_fields("content look", "article noun")]
    """Caption of a redrawn picture, with {content}, {look} and, if wanted, {article} and {noun}."""


class CaptioningParams(Strict):
    """Where captions come from, in this order: text beside the picture, vision-language model, zero-shot tags, template."""

    vision_language_model: PathText | None
    """Folder, Hub id or id@revision of a captioner: one with a chat template (Qwen-VL, SmolVLM, ...), Florence-2 or BLIP. Null:
    none."""
    content_instruction: Annotated[str, with_fields("", "article noun")]
    """What a captioner with a chat template is asked about a content's picture: all but the content itself, for which the token
    stands. {noun} and {article} are those of the class."""
    style_instruction: Annotated[str, with_fields("", "article noun")]
    """What it is asked about a style's picture, likewise: the thing, and nothing of the style."""
    clip: PathText | None
    """Path or Hub id of a CLIP model for zero-shot tags. Null: none."""
    content_words: list[Words]
    """Words that a style's pictures may be tagged with; empty: those of the file `tags.json` beside the CLIP model."""
    style_words: list[Words]
    """Words that a content's pictures may be tagged with, likewise."""
    min_confidence: float = Field(ge=0, le=1)
    """A tag less probable than this is not used."""
    max_words: int = Field(ge=4)
    """Longer texts are cut there, with a warning; the concept's token is never cut off."""
    content_template: Annotated[str, with_fields("content", "article noun")]
    """Caption of a content's picture, with {content} and, if wanted, {article} and {noun}."""
    style_template: Annotated[str, with_fields("", "article content noun")]
    """What stands before `style_suffix` in the caption of a style's picture, with the same fields."""
    style_suffix: Annotated[str, with_fields("style")]
    """End of the caption of a style's picture, with {style}: its token."""
    content_variants: list[Annotated[str, with_fields("content", "article noun style")]]
    """Further captions of every content's picture, with {content} and, if wanted, {style}: the tokens. A half that has met
    the style's token before composes with the style's half."""
    style_variants: list[Annotated[str, with_fields("style", "article noun")]]
    """Further captions of every style's picture, with {style}, its token, and no content."""


class PreservationParams(Strict):
    """Prompts of words that the base model knows. Each half is to leave those alone that do not name its own concept."""

    contents: list[Words]
    """Contents that the base model knows by these words."""
    styles: list[Words]
    """Styles that the base model knows by these words."""
    template: Annotated[str, with_fields("content style", "article")]
    """The prompts, with {content}, {style} and, if wanted, {article}. It holds no class noun of the run's concepts, so that
    neither half depends on the other's."""
    number: int = Field(96, ge=1, le=100_000)
    """So many prompts are drawn by lot, the run's own tokens and its counterparts' among the words."""

    @model_validator(mode="after")
    def _consistent(self) -> "PreservationParams":
        if bool(self.contents) != bool(self.styles):
            raise ValueError("name both contents and styles, or neither")
        return self
