"""Pictures of the content in the colours of the style's pictures: where a drawing starts that is to have the content's shape in
the style's manner (see training/rehearsal.py). A half says of colour as much as of shape, so the content's own colours would
win where a style prescribes others, as white on black or one blue for every fill.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from b4m_pipeline.common.colour import from_lab, sliced_distance, to_lab
from b4m_pipeline.inputs.looks import ground_mask

_COLOURS = 6  # of a picture, each changed as one
_SAMPLED = 256  # pixels of a palette
_LIGHTNESS_FIRST = np.array([1.0, 0.55, 0.55])  # what is light stays light where it can, whatever the hue
_GROUND = 0.1, 0.97  # a picture has a ground and something on it if the ground takes a share of it between these
_OWN, _PRESCRIBED = (
    40.0,
    25.0,
)  # CIELAB units between a style's pictures: as far as those of different things, and clearly nearer


@dataclass(frozen=True)
class _Parts:
    """lab: CIELAB (H, W, 3); subject: (H, W), True where it is not ground; ground: its colour, None if there is no even one."""

    lab: np.ndarray
    subject: np.ndarray
    ground: np.ndarray | None


def in_colours_of(contents: Sequence[Image.Image], styles: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """So many of the content's RGB pictures, in turn, each in the colours of the next of the style's: ground for ground, and
    the thing's colours for the thing's, as far as the style prescribes them (see `prescribed`)."""
    own, theirs = [_parts(picture) for picture in contents], [_parts(picture) for picture in styles]
    share = prescribed(styles)
    turns = [(own[index % len(own)], theirs[(index + index // len(own)) % len(theirs)]) for index in range(count)]
    return [_recolour(picture, model, share) for picture, model in turns]


def prescribed(styles: Sequence[Image.Image]) -> float:
    """How far a style prescribes the colours of what it shows, from 0 (each thing has its own, as in a photograph or an emoji
    set) to 1 (all things have the same, as in a blueprint): by the mean distance between its pictures' palettes, grounds left
    out. 0 for a single picture, which cannot tell."""
    palettes = [parts.lab[parts.subject] for parts in map(_parts, styles)]
    apart = [sliced_distance(one, other) for index, one in enumerate(palettes) for other in palettes[:index]]
    return float(np.clip((_OWN - np.mean(apart)) / (_OWN - _PRESCRIBED), 0, 1)) if apart else 0.0


def _parts(picture: Image.Image) -> _Parts:
    rgb = picture.convert("RGB")
    pixels = np.asarray(rgb)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(level) for level in np.median(border, axis=0))
    even = np.asarray(ground_mask(rgb, (red, green, blue))) > 127
    lab = to_lab(rgb)
    if _GROUND[0] <= even.mean() <= _GROUND[1]:
        return _Parts(lab, ~even, np.median(lab[even], axis=0))
    return _Parts(lab, np.ones_like(even), None)


def _recolour(own: _Parts, model: _Parts, share: float) -> Image.Image:
    """A picture in another's colours. Without an even ground in both, all of one takes the colours of all of the other."""
    lab, subject, palette = own.lab.copy(), np.ones_like(own.subject), model.lab.reshape(-1, 3)
    if own.ground is not None and model.ground is not None:
        subject, palette = own.subject, model.lab[model.subject]
        lab[~subject] += model.ground - own.ground
    lab[subject] += share * _shifts(lab[subject], palette)
    return from_lab(lab)


def _shifts(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """By how much each of the pixels (N, 3) changes so that they have the palette's colours (M, 3), in about its shares: each
    of their main colours goes where most of it goes in the optimal transport from the one to the other."""
    flat = from_lab(pixels[None]).quantize(_COLOURS, kmeans=1)
    colour_of = np.asarray(flat)[0]
    sampled = np.linspace(0, len(pixels) - 1, _SAMPLED).astype(int)
    goals = palette[np.linspace(0, len(palette) - 1, _SAMPLED).astype(int)]
    sources = pixels[sampled]
    centred = (_LIGHTNESS_FIRST * (given - given.mean(axis=0)) for given in (sources, goals))
    one, other = centred
    _, goal = linear_sum_assignment(((one[:, None] - other[None]) ** 2).sum(-1))
    shifts = np.zeros_like(pixels)
    for colour in np.unique(colour_of):
        members = colour_of == colour
        reached = goals[goal[colour_of[sampled] == colour]]
        if len(reached):
            shifts[members] = np.median(reached, axis=0) - pixels[members].mean(axis=0)
    return shifts
