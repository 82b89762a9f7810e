"""The corpus of the embedded base: named contents drawn by many hands, from vector sources.

A *content* is a CLDR name ("baby bottle"), a *hand* is one designer's set ("twemoji") or a procedural style applied to
one set's drawings. `make corpus` installs the sources (npm, see data/01_raw/corpus/package.json); nothing is downloaded
here.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.seeding import derive_seed, numpy_generator
from b4m_pipeline.inputs import filters as procedural

logger = logging.getLogger(__name__)

# A hand's name in the sources -> the words for it in a caption.
HANDS = {
    "twemoji": "twemoji",
    "noto": "noto",
    "noto-v1": "old noto",
    "openmoji": "openmoji",
    "fluent-emoji": "fluent 3d",
    "fluent-emoji-flat": "fluent flat",
    "fluent-emoji-high-contrast": "fluent mono",
    "emojione": "emojione",
    "emojione-v1": "old emojione",
    "streamline-emojis": "streamline",
    "emojione-monotone": "emojione mono",
    "fxemoji": "firefox",
}

# Sets that name their drawings without hyphens.
_UNHYPHENATED = {"fxemoji"}

# Near copies of each other, or told apart by writing alone: no use to a model of small pictures.
_DULL = ("japanese-", "-thirty", "-oclock", "keycap", "-button", "flag", "input-", "-arrow", "no-entry", "hundred-points")


class CorpusError(ValueError):
    """The vector sources are missing or unreadable."""


@dataclass
class Drawings:
    """Rendered drawings and what they are: rgba (N, S, S, 4) uint8 with straight alpha; table with N rows and the columns
    content, hand, style (the hand's words in captions), split, keywords, licence."""

    rgba: np.ndarray
    table: pd.DataFrame = field(repr=False)
    _digest: str | None = field(default=None, repr=False, init=False)

    def select(self, mask: np.ndarray | pd.Series) -> "Drawings":
        mask = np.asarray(mask)
        return Drawings(self.rgba[mask], self.table[mask].reset_index(drop=True))

    def digest(self) -> str:
        """Short sha256 of the pictures and of what they are, which nobody changes."""
        if self._digest is None:
            pixels = hashlib.sha256(np.ascontiguousarray(self.rgba)).hexdigest()
            self._digest = digest_of(pixels, self.table.to_csv(index=False))
        return self._digest

    def on(self, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
        """Composite over a colour (0-255) -> (N, S, S, 3) uint8."""
        rgb = np.empty((*self.rgba.shape[:-1], 3), np.uint8)
        for start in range(0, len(rgb), 1024):  # in float32 all of them would take gigabytes
            rgb[start : start + 1024] = composite(self.rgba[start : start + 1024], np.array(background))
        return rgb


def composite(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """rgba (..., S, S, 4) uint8 over background colours (..., 3), 0-255 -> (..., S, S, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    ground = np.asarray(background, np.float32)[..., None, None, :]
    return (rgba[..., :3] * alpha + ground * (1 - alpha) + 0.5).astype(np.uint8)


def read_set(source: Path, hand: str) -> dict[str, str]:
    """Content name -> SVG text of one hand."""
    path = source / "node_modules" / "@iconify-json" / hand / "icons.json"
    if not path.is_file():
        raise CorpusError(f"No vector sources at {path}. Run `make corpus` first (it needs Node's npm).")
    data = json.loads(path.read_text(encoding="utf-8"))
    icons = dict(data["icons"])
    for alias, entry in data.get("aliases", {}).items():
        if set(entry) == {"parent"} and entry["parent"] in data["icons"]:
            icons.setdefault(alias, data["icons"][entry["parent"]])
    svgs = {}
    for name, icon in icons.items():
        width, height = (icon.get(key, data.get(key, 16)) for key in ("width", "height"))
        svgs[name] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        )
    return svgs


def _keywords(source: Path) -> dict[str, list[str]]:
    """Content name -> CLDR keywords (emojibase)."""
    path = source / "node_modules" / "emojibase-data" / "en" / "data.json"
    if not path.is_file():
        raise CorpusError(f"No keywords at {path}. Run `make corpus` first.")
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {_slug(entry["label"]): entry.get("tags", []) for entry in entries}


def _slug(label: str) -> str:
    return "".join(c for c in label.lower().replace(" ", "-") if c.isalnum() or c == "-")


def licence_of(source: Path, hand: str) -> str:
    """SPDX id that the set itself states."""
    about = source / "node_modules" / "@iconify-json" / hand / "info.json"
    return json.loads(about.read_text(encoding="utf-8"))["license"]["spdx"]


def render_svg(svg: str, size: int) -> np.ndarray:
    """SVG text -> (S, S, 4) uint8, centred on a transparent square."""
    import resvg_py

    image = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True)))
    image = image.convert("RGBA")
    if image.size != (size, size):
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (size, size))
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = square
    return np.asarray(image)


def shrink(rgba: np.ndarray, size: int) -> np.ndarray:
    """Resize (S, S, 4) uint8 with premultiplied alpha, so that no dark fringe appears."""
    premultiplied = Image.fromarray(rgba, "RGBA").convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(premultiplied.convert("RGBA"))


def _render(job: tuple[str, str, list[str | None]], size: int) -> np.ndarray:
    """Render one job (content, svg, procedural styles, None for the drawing itself) at twice the size, style it, shrink it ->
    (styles, S, S, 4) uint8."""
    content, svg, styles = job
    drawing = render_svg(svg, 2 * size)
    results = []
    for style in styles:
        rgba = drawing
        if style is not None:
            rng = numpy_generator("procedural", style, content)
            styled = procedural.STYLES[style](drawing.astype(np.float32) / 255, rng)
            rgba = (np.clip(styled, 0, 1) * 255 + 0.5).astype(np.uint8)
        results.append(shrink(rgba, size))
    return np.stack(results)


def split_of(
    content: str, hand: str, held_out_contents: set[str], held_out_hands: set[str], known: set[str], unseen_share: float
) -> str:
    """Where a drawing belongs: train, unseen_pair (both parts known, the pair never shown), held_out_content,
    held_out_hand, held_out_both, or wide (a content that only the VAE and the CLIP see). Decided by a hash of the names,
    so that adding contents or hands moves no other drawing."""
    if content in held_out_contents:
        return "held_out_both" if hand in held_out_hands else "held_out_content"
    if hand in held_out_hands:
        return "held_out_hand"
    if content not in known:
        return "wide"
    return "unseen_pair" if derive_seed("pair", content, hand) % 1000 < unseen_share * 1000 else "train"


def build(
    source: Path,
    size: int,
    contents: Iterable[str],
    held_out_contents: Iterable[str],
    hands: Iterable[str],
    held_out_hands: Iterable[str],
    procedural_from: str,
    unseen_share: float,
    min_hands: int,
    processes: int,
) -> Drawings:
    """Render all drawings that the base's parts are trained and judged on.

    contents are the denoiser's; any further CLDR name that `min_hands` sets share is rendered as `wide`. Hands are set
    names or procedural style names; the latter are drawn from the set `procedural_from`.
    Raises CorpusError if a source is missing or a named content exists in no set.
    """
    known, held = list(contents), set(held_out_contents)
    hands, held_hands = list(hands), list(held_out_hands)
    every = [*hands, *held_hands]
    if unknown := [hand for hand in every if hand not in HANDS and hand not in procedural.STYLES]:
        raise CorpusError(f"Unknown hands {unknown}: expected names among {[*HANDS, *procedural.STYLES]}.")
    sets = {hand: read_set(source, hand) for hand in dict.fromkeys([*every, procedural_from]) if hand in HANDS}
    keywords = _keywords(source)
    for hand in _UNHYPHENATED & set(sets):
        drawn = {name: name.replace("-", "") for name in [*keywords, *known, *held]}
        sets[hand] = {name: sets[hand][plain] for name, plain in drawn.items() if plain in sets[hand]}
    shared = pd.Series([name for svgs in sets.values() for name in svgs]).value_counts()
    if absent := [name for name in [*known, *held] if name not in shared]:
        raise CorpusError(f"No set draws {absent}: expected CLDR names with hyphens, as in 'baby-bottle'.")
    licences = {hand: licence_of(source, hand) for hand in sets}
    wide = [n for n, count in shared.items() if count >= min_hands and n in keywords and not any(d in n for d in _DULL)]
    names = list(dict.fromkeys([*known, *held, *sorted(wide)]))

    rows: list[tuple] = []
    jobs: dict[tuple[str, str], list[tuple[int, str | None]]] = {}  # a drawing and the rows that are made of it
    for hand in every:
        style = hand if hand in procedural.STYLES else None
        drawn_from = procedural_from if style else hand
        for name in names:
            if style and name not in held and name not in known:
                continue  # procedural styles on the denoiser's contents only
            if name not in sets[drawn_from]:
                continue
            split = split_of(name, hand, held, set(held_hands), set(known), unseen_share)
            words = ", ".join(keywords.get(name, [])[:8])
            jobs.setdefault((name, drawn_from), []).append((len(rows), style))
            rows.append((name.replace("-", " "), hand, HANDS.get(hand, hand), split, words, licences[drawn_from]))
    logger.info("Rendering %d drawings of %d contents by %d hands", len(rows), len(names), len(every))
    rgba = np.empty((len(rows), size, size, 4), np.uint8)
    todo = [(name, sets[hand][name], [style for _, style in made]) for (name, hand), made in jobs.items()]
    with ProcessPoolExecutor(processes) as pool:
        drawn = pool.map(partial(_render, size=size), todo, chunksize=8)
        for made, pictures in zip(jobs.values(), drawn, strict=True):
            rgba[[row for row, _ in made]] = pictures
    table = pd.DataFrame(rows, columns=["content", "hand", "style", "split", "keywords", "licence"])
    return Drawings(rgba, table)
