"""The pictures of the default run: drawings whose content or hand the embedded base has never seen, from the corpus.

`python -m tools.default_input data/01_raw/corpus data/01_raw` writes them again.
"""

import csv
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.inputs import filters as procedural
from b4m_pipeline.inputs.folders import ATTRIBUTION
from b4m_pipeline.pretrain.corpus import HANDS, Drawings, build, licence_of, read_set, render_svg, shrink
from tools.crafts import CRAFTS

PROCEDURAL_FROM = "twemoji"  # whose drawings a procedural hand redraws, as in pretraining

_SIX = ["twemoji", "noto", "noto-v1", "fluent-emoji-flat", "emojione", "fluent-emoji-high-contrast"]

# Content (held out of pretraining) -> hands that draw it (known to the base).
CONTENTS = {
    "mushroom": ["twemoji", "noto", "noto-v1", "fluent-emoji-flat", "emojione-v1", "fluent-emoji-high-contrast"],
    "rocket": _SIX,
    "penguin": _SIX,
    # Further ones of the benchmark, and of the development of defaults.
    "octopus": _SIX,
    "cactus": _SIX,
    "bell": _SIX,
    "light-bulb": _SIX,
    "trophy": _SIX,
    "alarm-clock": _SIX,
    "wrapped-gift": _SIX,
    "teacup-without-handle": _SIX,
    "closed-umbrella": _SIX,
    "snail": _SIX,
    "crown": _SIX,
    "doughnut": _SIX,
    "sailboat": _SIX,
    # Counterparts: the style half's partners.
    "koala": ["twemoji", "noto", "fluent-emoji-flat", "emojione"],
    "strawberry": ["twemoji", "noto", "fluent-emoji", "emojione-v1"],
    "baby-bottle": ["twemoji", "noto", "fluent-emoji-flat", "emojione"],
}

# Hand -> contents that it draws (known to the base). All hands but noto are held out of pretraining.
STYLES = {
    "openmoji": ["red-apple", "frog", "hamburger", "automobile", "camera", "balloon"],
    "wood": ["cat-face", "pizza", "turtle", "bus", "guitar", "house"],
    "knit": ["rabbit-face", "watermelon", "fish", "locomotive", "hot-beverage", "red-heart"],
    "stained glass": ["cat-face", "pizza", "turtle", "bus", "guitar", "tulip"],
    # Counterparts: the content half's partners.
    "noto": ["dog-face", "banana", "bicycle", "key", "rose"],
    "streamline-emojis": ["cat-face", "cherries", "locomotive", "guitar", "ghost"],
    "blueprint": ["elephant", "pineapple", "airplane", "house", "sunflower"],
}

# Content and style of the default run and of the benchmark's other pairs; their true drawings are for evaluation alone.
PAIRS = [
    ("penguin", "knit"), ("rocket", "wood"), ("mushroom", "openmoji"), ("octopus", "stained glass"),
    ("cactus", "openmoji"), ("bell", "wood"), ("light-bulb", "knit"), ("trophy", "stained glass"),
    ("alarm-clock", "openmoji"), ("wrapped-gift", "wood"), ("teacup-without-handle", "knit"),
    ("closed-umbrella", "stained glass"),
]  # fmt: skip

# On which defaults are chosen; never reported.
DEVELOPMENT_PAIRS = [
    ("snail", "streamline-emojis"),
    ("crown", "blueprint"),
    ("sailboat", "streamline-emojis"),
    ("doughnut", "blueprint"),
]


# Style -> contents that it draws (known to the base). No base has seen these, and none is an emoji hand: icons and crafts.
FURTHER_STYLES = {
    "phosphor-duotone": ["cat-face", "house", "camera", "airplane", "key", "automobile"],
    "lucide": ["fish", "rabbit", "hammer", "ghost", "red-apple", "turtle"],
    "plump-color": ["dog-face", "fish", "hamburger", "scissors", "bicycle", "gem-stone"],
    "solar-duotone": ["cat-face", "house", "balloon", "glasses", "bomb", "star"],
    "cut paper": ["cat-face", "house", "fish", "automobile", "rose"],
    "tesserae": ["turtle", "rose", "dog-face", "watermelon", "whale"],
    "cross stitch": ["rabbit-face", "house", "tropical-fish", "guitar", "red-heart"],
    "engraving": ["elephant", "airplane", "pineapple", "camera", "key"],
}

# The benchmark's second table.
FURTHER_PAIRS = [
    ("cactus", "phosphor-duotone"), ("rocket", "phosphor-duotone"), ("trophy", "lucide"), ("alarm-clock", "lucide"),
    ("light-bulb", "plump-color"), ("wrapped-gift", "plump-color"), ("bell", "solar-duotone"), ("penguin", "cut paper"),
    ("closed-umbrella", "cut paper"), ("octopus", "tesserae"), ("mushroom", "cross stitch"),
    ("teacup-without-handle", "engraving"),
]  # fmt: skip


@dataclass(frozen=True)
class _IconSet:
    """Icons of one style. ending: of their names; colour: in place of currentColor; names: of those called otherwise than what
    they show."""

    package: str
    ending: str = ""
    colour: str = ""
    names: dict[str, str] = field(default_factory=dict)


ICON_SETS = {
    "phosphor-duotone": _IconSet("ph", "-duotone", "#343330", {"cat-face": "cat", "automobile": "car"}),
    "lucide": _IconSet("lucide", "", "#9b2226", {"red-apple": "apple"}),
    "plump-color": _IconSet(
        "streamline-plump-color",
        names={
            **{"dog-face": "dog-1", "hamburger": "burger", "bicycle": "bicycle-bike", "gem-stone": "diamond-1"},
            **{"light-bulb": "lightbulb", "wrapped-gift": "gift"},
        },
    ),
    "solar-duotone": _IconSet("solar", "-bold-duotone", "#1c274c", {"cat-face": "cat"}),
}


@dataclass(frozen=True)
class _Picture:
    """One file to write: the drawing of `content` by `hand`, and what its text file says ("" for none)."""

    folder: str
    stem: str
    content: str
    hand: str
    text: str = ""


def _folder(hand: str) -> str:
    return hand.replace(" ", "-")


def _pictures() -> list[_Picture]:
    """All files of the default input."""
    listed = []
    for content, hands in CONTENTS.items():
        listed += [_Picture(f"contents/{content}", hand, content, hand, HANDS.get(hand, hand)) for hand in hands]
    for hand, contents in (STYLES | FURTHER_STYLES).items():
        listed += [_Picture(f"styles/{_folder(hand)}", name, name, hand, name.replace("-", " ")) for name in contents]
    pairs = PAIRS + DEVELOPMENT_PAIRS + FURTHER_PAIRS
    listed += [_Picture(f"truth/{content}-{_folder(hand)}", content, content, hand) for content, hand in pairs]
    return listed


def export_default_input(source: Path, target: Path, size: int = 128) -> list[Path]:
    """Render the default input from the vector sources in `source` (see `make corpus`) into `target`.

    Writes contents/<name>/, styles/<name>/ and truth/<content>-<style>/: PNGs of `size` pixels with their transparency,
    text files of one phrase that name what is not to be learned, and attribution.csv. Returns the pictures' paths.
    Raises CorpusError if the sources are missing.
    """
    pictures = _pictures()
    of_corpus = [picture for picture in pictures if picture.hand not in FURTHER_STYLES]
    drawings = build(
        source=source,
        size=size,
        contents=dict.fromkeys(picture.content for picture in of_corpus),
        held_out_contents=[],
        hands=dict.fromkeys(picture.hand for picture in of_corpus),
        held_out_hands=[],
        procedural_from=PROCEDURAL_FROM,
        unseen_share=0,
        min_hands=sys.maxsize,  # no other contents
        processes=1,
    )
    versions = json.loads((source / "package.json").read_text(encoding="utf-8"))["dependencies"]
    sets = {name: read_set(source, name) for name in (PROCEDURAL_FROM, *(icons.package for icons in ICON_SETS.values()))}
    written, attribution = [], {}
    for picture in pictures:
        if picture.hand in FURTHER_STYLES:
            rgba, licence = _further(sets, picture, size), licence_of(source, _package(picture.hand))
        else:
            rgba, licence = _drawing(drawings, picture)
        folder = target / picture.folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{picture.stem}.png"
        Image.fromarray(rgba).save(path, optimize=True)
        if picture.text:
            path.with_suffix(".txt").write_text(picture.text + "\n", encoding="utf-8")
        attribution.setdefault(folder, []).append((path.name, licence, _source(picture.hand, versions)))
        written.append(path)
    for folder, rows in attribution.items():
        with (folder / ATTRIBUTION).open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerows([("file", "licence", "source"), *rows])
    return written


def _drawing(drawings: Drawings, picture: _Picture) -> tuple:
    """RGBA (S, S, 4) and licence of a picture's drawing."""
    table = drawings.table
    row = table.index[(table.content == picture.content.replace("-", " ")) & (table.hand == picture.hand)].item()
    return drawings.rgba[row], table.licence[row]


def _further(sets: dict[str, dict[str, str]], picture: _Picture, size: int) -> np.ndarray:
    """RGBA (S, S, 4) uint8 of an icon, without most of the margin that icons have, or of a craft."""
    drawings = sets[_package(picture.hand)]
    if icons := ICON_SETS.get(picture.hand):
        svg = drawings[icons.names.get(picture.content, picture.content) + icons.ending]
        margin = size // 8
        return shrink(render_svg(svg.replace("currentColor", icons.colour), 4 * size)[margin:-margin, margin:-margin], size)
    drawing = render_svg(drawings[picture.content], 2 * size).astype(np.float32) / 255
    made = CRAFTS[picture.hand](drawing, numpy_generator("craft", picture.hand, picture.content))
    return shrink((np.clip(made, 0, 1) * 255 + 0.5).astype(np.uint8), size)


def _package(hand: str) -> str:
    """The set that a hand's drawings come from."""
    if hand in ICON_SETS:
        return ICON_SETS[hand].package
    return PROCEDURAL_FROM if hand in procedural.STYLES or hand in CRAFTS else hand


def _source(hand: str, versions: dict[str, str]) -> str:
    """Where a hand's drawings come from, with what was changed."""
    drawn_from = _package(hand)
    package = f"@iconify-json/{drawn_from}"
    text = f"{drawn_from} via {package} {versions[package]}"
    if hand in ICON_SETS:
        colour = ICON_SETS[hand].colour
        return f"{text}, enlarged" + (f", in {colour}" if colour else "")
    return f"{text}, redrawn as {hand} by b4m_pipeline" if hand != drawn_from else text


if __name__ == "__main__":
    export_default_input(Path(sys.argv[1]), Path(sys.argv[2]))
