"""Crafts as functions of a drawing: styles of the benchmark's second table alone. They are not among `inputs.filters`, so
that neither a base nor a run's looks can have seen them.

Each function takes a float array (S, S, 4), RGBA in [0, 1] with straight alpha, and a `numpy.random.Generator`, and returns an
opaque array of the same shape and range. Sizes are given for S = 128 and scale with S.
"""

import numpy as np
from PIL import Image

from b4m_pipeline.inputs.filters import Style, _blur, _edges, _luminance, _opaque, _over, _quantise

_KRAFT = np.array([0.8, 0.72, 0.6], np.float32)


def cut_paper(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pieces of coloured paper, a few muted colours, glued over each other on a kraft sheet: each throws a soft shadow."""
    size = rgba.shape[0]
    unit = size / 128
    flat = _quantise(_over(rgba, _KRAFT), 6)
    colours, label = np.unique(flat.reshape(-1, 3), axis=0, return_inverse=True)
    inside = rgba[..., 3] > 0.5
    label = np.where(inside, label.reshape(size, size), len(colours))
    # A piece's outline is cut smoothly: each place has the colour of most of its surroundings.
    masks = np.stack([_blur((label == index).astype(np.float32), 1.3 * unit) for index in range(len(colours) + 1)])
    label = masks.argmax(0)
    order = sorted(range(len(colours)), key=lambda index: -(label == index).sum())
    sheet = np.broadcast_to(_KRAFT, (size, size, 3))
    below = (label < len(colours)).astype(np.float32)  # the lowest piece lies under all others
    shift = round(2.5 * unit)
    for place, index in enumerate(order):
        piece = below if place == 0 else (label == index).astype(np.float32)
        if piece.sum() < 6 * unit**2:
            continue
        fallen = np.pad(piece, ((shift, 0), (shift, 0)))[:size, :size]
        shadow = _blur(fallen, 2.2 * unit)[..., None]
        muted = 0.75 * colours[index] + 0.25 * np.array([0.62, 0.55, 0.5], np.float32)
        edge = _blur(piece, 0.4 * unit)[..., None]
        sheet = sheet * (1 - 0.55 * shadow)
        sheet = sheet * (1 - edge) + muted * edge
    return _opaque(sheet)


def tesserae(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Broken stones of earthy colours and many shapes, set in pale mortar, the ground too."""
    size, grid = rgba.shape[0], 15
    seeds = (np.stack(np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij"), -1).reshape(-1, 2) + 0.5) / grid
    seeds = (seeds + rng.uniform(-0.38, 0.38, seeds.shape) / grid) * size
    along = np.arange(size, dtype=np.float32) + 0.5
    distance = (along[:, None, None] - seeds[:, 0]) ** 2 + (along[None, :, None] - seeds[:, 1]) ** 2  # (S, S, stones), squared
    stone = distance.argmin(-1)
    near, further = np.sqrt(np.partition(distance, 1, axis=-1)[..., :2]).transpose(2, 0, 1)
    rgb = _over(rgba, np.array([0.83, 0.76, 0.62], np.float32))
    count = np.maximum(np.bincount(stone.ravel(), minlength=len(seeds)), 1)
    mean = np.stack([np.bincount(stone.ravel(), rgb[..., c].ravel(), len(seeds)) / count for c in range(3)], -1)
    grey = mean.mean(-1, keepdims=True)
    earthy = (grey + 0.7 * (mean - grey)) * np.array([1.0, 0.94, 0.84]) * rng.uniform(0.8, 1.1, (len(seeds), 1))
    joint = np.clip((1.8 * size / 128 - (further - near)) / (0.6 * size / 128), 0, 1)[..., None]
    middle = seeds[stone].sum(-1) - along[:, None] - along  # a stone is lit from the upper left
    surface = earthy[stone] * (1 + 0.1 * np.clip(middle / (size / 32), -1, 1))[..., None]
    return _opaque((surface * (1 - joint) + np.array([0.72, 0.68, 0.62]) * joint).astype(np.float32))


def cross_stitch(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crosses of thread, twenty in a row, on white cloth whose holes show where nothing is stitched."""
    size, stitches = rgba.shape[0], 20
    edge = size / stitches
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / edge
    row, column = (plane.astype(int).clip(0, stitches - 1) for plane in (y, x))
    image = Image.fromarray((rgba * 255).astype(np.uint8), "RGBA").convert("RGBa").resize((stitches,) * 2, Image.Resampling.BOX)
    cells = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    thread, sewn = _quantise(cells[..., :3], 9)[row, column], (cells[..., 3] > 0.45)[row, column]
    u, v = x % 1 - 0.5, y % 1 - 0.5  # a cell's middle is (0, 0)
    hole = np.exp(-(((0.5 - np.abs(u)) ** 2 + (0.5 - np.abs(v)) ** 2) / 0.02))
    weave = 0.97 - 0.03 * (np.sin(8 * np.pi * x) * np.sin(8 * np.pi * y)) - 0.45 * hole
    picture = np.array([0.98, 0.97, 0.93]) * weave[..., None]
    for across in (u + v, u - v):  # the lower half of the cross, then the upper one over it
        leg = np.clip((0.25 - np.abs(across)) / 0.05, 0, 1) * sewn
        shade = np.clip(1.08 - 5.5 * across**2, 0, 1.1) * (0.93 + 0.07 * np.cos(60 * across))
        picture = picture * (1 - leg[..., None]) + (thread * shade[..., None]) * leg[..., None]
    return _opaque(picture.astype(np.float32))


def engraving(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brown ink on cream paper from a copper plate: curved lines that swell with darkness, crossed where it is deep."""
    size = rgba.shape[0]
    dark = 1 - _luminance(_over(rgba))
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * 128 / size
    bulge = 9 * _blur(rgba[..., 3], 12 * size / 128)  # lines bend over the shape as over a body
    tone = np.clip(_blur(dark, 1.0 * size / 128) * 0.85 + 0.12 * rgba[..., 3], 0, 1)
    ink = np.zeros((size, size), np.float32)
    for low, (across, period) in zip((0.03, 0.5), ((0.25 * x + y - bulge, 5.5), (y - 0.9 * x + bulge, 6.5)), strict=True):
        ridge = np.abs((across / period) % 1 - 0.5) * 2  # 1 between two lines, 0 on a line
        width = np.clip((tone - low) / (1 - low), 0, 1) * 0.95
        ink = np.maximum(ink, np.clip((width - ridge) * period / 1.6 + 0.5, 0, 1) * (tone > low))
    ink = np.maximum(ink, _edges(rgba, 1.3 * size / 128))[..., None]
    paper, brown = np.array([0.96, 0.92, 0.82], np.float32), np.array([0.24, 0.14, 0.08], np.float32)
    return _opaque(paper * (1 - ink) + brown * ink)


CRAFTS: dict[str, Style] = {style.__name__.replace("_", " "): style for style in (cut_paper, tesserae, cross_stitch, engraving)}
