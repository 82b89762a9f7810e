"""The pictures of the default run: drawings whose content or hand the embedded base has never seen, from the corpus.

`python -m tools.default_input data/01_raw/corpus data/01_raw` writes them again.
"""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from b4m_pipeline.inputs import filters as procedural
from b4m_pipeline.inputs.folders import ATTRIBUTION
from b4m_pipeline.pretrain.corpus import HANDS, Drawings, build

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
    for hand, contents in STYLES.items():
        listed += [_Picture(f"styles/{_folder(hand)}", name, name, hand, name.replace("-", " ")) for name in contents]
    pairs = PAIRS + DEVELOPMENT_PAIRS
    listed += [_Picture(f"truth/{content}-{_folder(hand)}", content, content, hand) for content, hand in pairs]
    return listed


def export_default_input(source: Path, target: Path, size: int = 128) -> list[Path]:
    """Render the default input from the vector sources in `source` (see `make corpus`) into `target`.

    Writes contents/<name>/, styles/<name>/ and truth/<content>-<style>/: PNGs of `size` pixels with their transparency,
    text files of one phrase that name what is not to be learned, and attribution.csv. Returns the pictures' paths.
    Raises CorpusError if the sources are missing.
    """
    pictures = _pictures()
    drawings = build(
        source=source,
        size=size,
        contents=dict.fromkeys(picture.content for picture in pictures),
        held_out_contents=[],
        hands=dict.fromkeys(picture.hand for picture in pictures),
        held_out_hands=[],
        procedural_from=PROCEDURAL_FROM,
        unseen_share=0,
        min_hands=sys.maxsize,  # no other contents
        processes=1,
    )
    versions = json.loads((source / "package.json").read_text())["dependencies"]
    written, attribution = [], {}
    for picture in pictures:
        rgba, licence = _drawing(drawings, picture)
        folder = target / picture.folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{picture.stem}.png"
        Image.fromarray(rgba).save(path, optimize=True)
        if picture.text:
            path.with_suffix(".txt").write_text(picture.text + "\n")
        attribution.setdefault(folder, []).append((path.name, licence, _source(picture.hand, versions)))
        written.append(path)
    for folder, rows in attribution.items():
        with (folder / ATTRIBUTION).open("w", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows([("file", "licence", "source"), *rows])
    return written


def _drawing(drawings: Drawings, picture: _Picture) -> tuple:
    """RGBA (S, S, 4) and licence of a picture's drawing."""
    table = drawings.table
    row = table.index[(table.content == picture.content.replace("-", " ")) & (table.hand == picture.hand)].item()
    return drawings.rgba[row], table.licence[row]


def _source(hand: str, versions: dict[str, str]) -> str:
    """Where a hand's drawings come from, with what was changed."""
    drawn_from = PROCEDURAL_FROM if hand in procedural.STYLES else hand
    package = f"@iconify-json/{drawn_from}"
    text = f"{drawn_from} via {package} {versions[package]}"
    return f"{text}, redrawn as {hand} by b4m_pipeline" if hand != drawn_from else text


if __name__ == "__main__":
    export_default_input(Path(sys.argv[1]), Path(sys.argv[2]))
