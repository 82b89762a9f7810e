"""Materials and textures as functions of a drawing: styles whose true picture exists for every content.

Each function takes a float array (S, S, 4), RGBA in [0, 1] with straight alpha, and a `numpy.random.Generator`, and
returns an array of the same shape and range. Sizes are given for S = 128 and scale with S.
"""

import colorsys
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from b4m_pipeline.common.seeding import numpy_generator

Style = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _blur(plane: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a plane (S, S) in [0, 1]."""
    image = Image.fromarray((np.clip(plane, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def _over(rgba: np.ndarray, background: np.ndarray | float = 1.0) -> np.ndarray:
    """Composite (S, S, 4) over a background colour -> (S, S, 3)."""
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + background * (1 - alpha)


def _luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114], dtype=rgb.dtype)


def _edges(rgba: np.ndarray, width: float) -> np.ndarray:
    """Strength in [0, 1] of contours of shape and colour, (S, S), drawn about `width` pixels wide."""
    size = rgba.shape[0]
    planes = [*np.moveaxis(_over(rgba, 0.5), -1, 0), rgba[..., 3]]
    strength = np.zeros((size, size), np.float32)
    for plane in planes:
        plane = _blur(plane, 0.6 * size / 128)
        dy, dx = np.gradient(plane)
        strength = np.maximum(strength, np.hypot(dx, dy))
    line = (strength > 0.06).astype(np.float32)
    return np.clip(_blur(line, width / 2) * 1.8, 0, 1)


def _opaque(rgb: np.ndarray) -> np.ndarray:
    return np.concatenate([np.clip(rgb, 0, 1), np.ones_like(rgb[..., :1])], axis=-1).astype(np.float32)


def _quantise(rgb: np.ndarray, colours: int) -> np.ndarray:
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.quantize(colours, kmeans=1).convert("RGB"), dtype=np.float32) / 255


def comic(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Few flat saturated colours inside a bold dark outline."""
    flat = _quantise(_over(rgba), 6)
    grey = _luminance(flat)[..., None]
    flat = np.clip(grey + 1.35 * (flat - grey), 0, 1)
    line = _edges(rgba, 3.0 * rgba.shape[0] / 128)[..., None]
    rgb = flat * (1 - line) + np.array([0.07, 0.05, 0.1], np.float32) * line
    alpha = np.maximum(rgba[..., 3:], line)
    return np.concatenate([rgb, alpha], axis=-1).astype(np.float32)


def pixel_art(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sixteen coarse pixels a side and a small palette."""
    size = rgba.shape[0]
    image = Image.fromarray((rgba * 255).astype(np.uint8), "RGBA").resize((16, 16), Image.Resampling.BOX)
    small = np.asarray(image, dtype=np.float32) / 255
    rgb = _quantise(small[..., :3], 8)
    alpha = (small[..., 3:] > 0.5).astype(np.float32)
    big = np.concatenate([rgb, alpha], axis=-1)
    return big.repeat(size // 16, axis=0).repeat(size // 16, axis=1)


def neon(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Glowing tubes in the drawing's colours along its contours, on a dark wall."""
    size = rgba.shape[0]
    line = _edges(rgba, 1.6 * size / 128)
    glow = np.clip(_blur(line, 5 * size / 128) * 1.6, 0, 1)
    colour = np.stack([_blur(plane, 2 * size / 128) for plane in np.moveaxis(_over(rgba, 0.6), -1, 0)], axis=-1)
    colour = colour - colour.min(axis=-1, keepdims=True) * 0.8
    colour = colour / np.maximum(colour.max(axis=-1, keepdims=True), 0.15)
    wall = np.array([0.05, 0.04, 0.12], np.float32)
    return _opaque(wall + colour * (0.75 * glow + 0.9 * line)[..., None])


def halftone(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dark blue printer's dots on cream paper; a dot's area follows the darkness under it."""
    size = rgba.shape[0]
    dark = 1 - _luminance(_over(rgba))
    pitch = 11 * size / 128
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    u, v = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    cell = (np.cos(2 * np.pi * u / pitch) + np.cos(2 * np.pi * v / pitch)) / 4 + 0.5
    local = _blur(np.clip(dark * 1.15 + 0.08 * rgba[..., 3], 0, 1), pitch / 3)
    ink = np.clip((local - (1 - cell)) * 6 + 0.5, 0, 1)[..., None] * (local > 0.03)[..., None]
    paper, blue = np.array([0.98, 0.95, 0.86], np.float32), np.array([0.1, 0.16, 0.42], np.float32)
    return _opaque(paper * (1 - ink) + blue * ink)


def blueprint(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White construction lines on blue paper with a faint grid."""
    size = rgba.shape[0]
    y, x = np.mgrid[0:size, 0:size]
    step = size // 8
    grid = ((x % step < size // 64) | (y % step < size // 64)).astype(np.float32) * 0.1
    line = np.clip(_edges(rgba, 2.4 * size / 128) + grid + 0.12 * rgba[..., 3], 0, 1)[..., None]
    return _opaque(np.array([0.1, 0.28, 0.62], np.float32) * (1 - line) + line)


def wood(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Carved from a board: brown tones by lightness, wavy grain, a shaded rim."""
    size = rgba.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    wave = y * 22 + 1.5 * np.sin(x * 5 + rng.uniform(0, 6)) + 0.6 * np.sin(x * 13 + rng.uniform(0, 6))
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * wave / 2.2)
    light = _luminance(_over(rgba))
    dark, pale = np.array([0.28, 0.15, 0.06], np.float32), np.array([0.87, 0.66, 0.4], np.float32)
    tone = np.clip(0.15 + 0.75 * light + 0.16 * (grain - 0.5), 0, 1)[..., None]
    rgb = dark * (1 - tone) + pale * tone
    rgb = rgb * (1 - 0.55 * _edges(rgba, 2.5 * size / 128)[..., None])
    return np.concatenate([rgb, rgba[..., 3:]], axis=-1).astype(np.float32)


def stained_glass(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Panes of one colour each, leaded in black; the whole window is glass."""
    size = rgba.shape[0]
    grid = 7
    seeds = (np.stack(np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij"), -1).reshape(-1, 2) + 0.5) / grid
    seeds = (seeds + rng.uniform(-0.35, 0.35, seeds.shape) / grid) * size
    along = np.arange(size, dtype=np.float32)
    distance = (along[:, None, None] - seeds[:, 0]) ** 2 + (along[None, :, None] - seeds[:, 1]) ** 2  # (S, S, panes), squared
    pane = distance.argmin(-1)
    nearest = np.sqrt(distance.min(-1))
    np.put_along_axis(distance, pane[..., None], np.inf, axis=-1)
    further = np.sqrt(distance.min(-1)) - nearest
    rgb = _over(rgba, np.array([0.75, 0.88, 0.95], np.float32))
    count = np.maximum(np.bincount(pane.ravel(), minlength=len(seeds)), 1)
    mean = np.stack([np.bincount(pane.ravel(), rgb[..., c].ravel(), len(seeds)) / count for c in range(3)], -1)
    grey = mean.mean(-1, keepdims=True)
    glass = np.clip(grey + 1.4 * (mean - grey), 0, 1)[pane]
    lead = np.maximum((further < 3.2 * size / 128), _edges(rgba, 2.4 * size / 128) > 0.5)
    return _opaque(np.where(lead[..., None], 0.06, glass).astype(np.float32))


def knit(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stocking stitch, shaded as Vs, embroidered over in half stitches of one colour each; the ground is cream wool."""
    size, columns, rows = rgba.shape[0], 10, 12
    width, height = size / columns, size / rows
    y, x = np.mgrid[0:size, 0:size] + 0.5
    slant = np.abs((x % width) / width - 0.5) * 2  # 0 in a stitch's middle, from where its legs rise, 1 at its sides
    rise = y + 0.6 * height * slant
    row = (2 * (y + 0.3 * height * slant) / height).astype(int).clip(0, 2 * rows - 1)
    column = (2 * x / width).astype(int)
    ground = np.array([0.93, 0.88, 0.78], np.float32)
    image = Image.fromarray((_over(rgba, ground) * 255).astype(np.uint8)).resize((2 * columns, 2 * rows), Image.Resampling.BOX)
    wool = _quantise(np.asarray(image, dtype=np.float32) / 255, 8)[row, column]
    phase = (rise % height) / height
    shade = (0.55 + 0.5 * np.sin(np.pi * phase)) * (1 - 0.3 * np.exp(-((slant / 0.25) ** 2)) - 0.3 * slant**4)
    return _opaque(wool * shade[..., None].astype(np.float32))


def mosaic(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Square tiles of one colour each, no two quite alike, set in grey grout."""
    size, tiles = rgba.shape[0], 12
    edge = size / tiles
    y, x = np.mgrid[0:size, 0:size]
    row, column = (y / edge).astype(int).clip(0, tiles - 1), (x / edge).astype(int).clip(0, tiles - 1)
    ground = np.array([0.86, 0.9, 0.88], np.float32)
    image = Image.fromarray((_over(rgba, ground) * 255).astype(np.uint8)).resize((tiles, tiles), Image.Resampling.BOX)
    tile = np.asarray(image, dtype=np.float32) / 255 + rng.uniform(-0.07, 0.07, (tiles, tiles, 1)).astype(np.float32)
    grout = (((y % edge) < 2 * size / 128) | ((x % edge) < 2 * size / 128))[..., None]
    return _opaque(np.where(grout, 0.45, tile[row, column]))


def marble(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut in relief out of white stone with dark veins; colours become greys."""
    size = rgba.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    bend = sum(np.sin(2 * np.pi * (f * x * np.cos(a) + f * y * np.sin(a)) + p) / f for f, a, p in rng.uniform(1, 6, (6, 3)))
    vein = np.abs(np.sin(2 * np.pi * (1.3 * x + 1.9 * y + 0.45 * bend))) ** 0.5
    grey = 0.5 + 0.5 * _luminance(_over(rgba))
    tone = np.clip(grey * (0.62 + 0.38 * vein), 0, 1) * (1 - 0.4 * _edges(rgba, 2.0 * size / 128))
    rgb = tone[..., None] * np.array([0.99, 0.99, 1.0], np.float32)
    return np.concatenate([rgb, rgba[..., 3:]], axis=-1).astype(np.float32)


def brick(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Painted on a wall of red bricks; the joints show through."""
    size, courses = rgba.shape[0], 10
    height, width = size / courses, size / courses * 2
    y, x = np.mgrid[0:size, 0:size]
    course = (y / height).astype(int).clip(0, courses - 1)
    shifted = x + (course % 2) * width / 2
    joint = ((y % height) < 2.2 * size / 128) | ((shifted % width) < 2.2 * size / 128)
    tint = rng.uniform(0.85, 1.1, (courses, courses))[course, (shifted / width).astype(int) % courses]
    wall = np.array([0.66, 0.3, 0.22], np.float32) * tint[..., None]
    paint = _over(rgba, 0.0) * (0.75 + 0.25 * tint[..., None])
    rgb = wall * (1 - 0.85 * rgba[..., 3:]) + 0.85 * paint
    mortar = 0.72 * (1 - 0.6 * rgba[..., 3:]) + 0.6 * 0.55 * paint
    return _opaque(np.where(joint[..., None], mortar, rgb).astype(np.float32))


def sketch(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pencil on paper: contours, and slanted hatching that gets denser with darkness."""
    size = rgba.shape[0]
    dark = _blur(1 - _luminance(_over(rgba)), 1.5 * size / 128)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * 128 / size
    tone = np.zeros((size, size), np.float32)
    for level, (along, across) in zip((0.12, 0.35, 0.6), ((1, 1), (1, -1), (1, 0.15)), strict=True):
        stroke = 0.5 + 0.5 * np.sin(2 * np.pi * (along * x + across * y) / 12)
        tone = np.maximum(tone, stroke * np.clip((dark - level) * 5, 0, 1) * 0.75)
    tone = np.maximum(tone, 0.9 * _edges(rgba, 1.8 * size / 128))
    return _opaque(0.97 - 0.75 * tone[..., None] * np.ones(3, np.float32))


def denim(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patch cut from blue twill, shaded by lightness, sewn along its contour with a yellow seam."""
    size = rgba.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * 128 / size
    twill = 0.5 + 0.5 * np.sin(2 * np.pi * (x + y) / 15)
    tone = np.clip(0.15 + 0.65 * _luminance(_over(rgba)) + 0.22 * (twill - 0.5), 0, 1)[..., None]
    cloth = np.array([0.06, 0.1, 0.25], np.float32) * (1 - tone) + np.array([0.62, 0.74, 0.9], np.float32) * tone
    stitch = _edges(rgba, 2.0 * size / 128) * (np.sin(2 * np.pi * (x - y) / 20) > 0)
    rgb = cloth * (1 - stitch[..., None]) + np.array([0.93, 0.72, 0.3], np.float32) * stitch[..., None]
    return np.concatenate([rgb, rgba[..., 3:]], axis=-1).astype(np.float32)


def gold(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cast in polished gold: bands of reflection that follow lightness, dark in the hollows, on black velvet."""
    size = rgba.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    light = _blur(_luminance(_over(rgba, 0.5)), 2 * size / 128)
    shine = 0.5 + 0.5 * np.sin(2 * np.pi * (1.6 * light + 0.9 * (x + y)) + rng.uniform(0, 6))
    tone = np.clip(0.25 + 0.35 * light + 0.4 * shine, 0, 1)[..., None]
    metal = np.array([0.3, 0.17, 0.02], np.float32) * (1 - tone) + np.array([1.0, 0.88, 0.45], np.float32) * tone
    metal = metal * (1 - 0.6 * _edges(rgba, 2.5 * size / 128)[..., None])
    return _opaque(metal * rgba[..., 3:] + np.array([0.06, 0.04, 0.07], np.float32) * (1 - rgba[..., 3:]))


def random_texture(rng: np.random.Generator, size: int, unit: float = 1.0) -> np.ndarray:
    """A pattern that means nothing, (S, S) in [0, 1]: what an autoencoder needs to have seen to keep any texture.

    A product or sum of two gratings of any direction, 4 to 20 units long, bent by a slow wave; or smoothed noise; soft or
    hard. unit: in pixels; a size and a unit twice as large give the same pattern, finer drawn.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / np.float32(unit)
    if rng.random() < 0.25:
        side = round(size / unit)
        plane = _blur(rng.random((side, side), np.float32), rng.uniform(0.5, 2.5))
        if side != size:
            plane = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC))
        plane = (plane - plane.min()) / max(float(np.ptp(plane)), 1e-6)
    else:
        waves = []
        for _ in range(2):
            angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(4), np.log(20)))
            bend = rng.uniform(0, 2) * np.sin(2 * np.pi * (x * np.sin(angle) + y * np.cos(angle)) / rng.uniform(16, 64))
            waves.append(np.sin(2 * np.pi * (x * np.cos(angle) - y * np.sin(angle) + bend) / period + rng.uniform(0, 6)))
        kind = rng.integers(3)
        plane = 0.5 + 0.5 * (waves[0] if kind == 0 else waves[0] * waves[1] if kind == 1 else np.maximum(*waves))
    if rng.random() < 0.3:
        plane = np.clip((plane - 0.5) * rng.uniform(2, 8) + 0.5, 0, 1)
    return plane.astype(np.float32)


def _colour(rng: np.random.Generator, lightness: tuple[float, float]) -> np.ndarray:
    return np.array(colorsys.hls_to_rgb(rng.random(), rng.uniform(*lightness), rng.uniform(0.1, 0.9)), np.float32)


def _cells(rgb: np.ndarray, down: int, across: int, offset: float, joint: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour (S, S, 3) of a grid's cells, every other course shifted by `offset` of a cell, and where the joints are."""
    size = rgb.shape[0]
    y, x = np.mgrid[0:size, 0:size] + 0.5
    row = (y * down / size).astype(int)
    place = x * across / size + offset * (row % 2)
    cell = row * (across + 1) + place.astype(int)
    count = np.maximum(np.bincount(cell.ravel()), 1)
    mean = np.stack([np.bincount(cell.ravel(), rgb[..., c].ravel()) / count for c in range(3)], -1)[cell]
    joints = ((y * down / size) % 1 < joint * down) | (place % 1 < joint * across)
    return mean.astype(np.float32), joints.astype(np.float32)


def manner(rgba: np.ndarray, rng: np.random.Generator, name: str) -> np.ndarray:
    """A style drawn by lot from its name: colours kept, flattened, tinted or replaced by two; perhaps a ground, cells with
    joints, a pattern, an outline.

    Many such styles teach a base that a style may be any of these together, so that one it never saw is not far from what it
    can draw.
    """
    own, size = numpy_generator("manner", name), rgba.shape[0]
    ground = None if own.random() < 0.4 else _colour(own, (0.75, 0.97) if own.random() < 0.6 else (0.05, 0.35))
    dark, pale = _colour(own, (0.05, 0.35)), _colour(own, (0.65, 0.95))
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    tones = own.choice(["keep", "flat", "tint", "two"], p=[0.35, 0.2, 0.2, 0.25])
    levels, mix = int(own.integers(3, 8)), own.uniform(0.4, 0.7)
    if tones == "flat":
        rgb = _quantise(_over(rgba), levels)
    elif tones != "keep":
        light = _luminance(_over(rgba, 0.5))[..., None]
        two = dark * (1 - light) + pale * light
        rgb = two if tones == "two" else mix * two + (1 - mix) * rgb
    if ground is not None:
        rgb, alpha = rgb * alpha + ground * (1 - alpha), np.ones_like(alpha)
    celled, down = own.random() < 0.4, int(own.integers(8, 18))
    across = int(np.clip(round(down * own.choice([0.5, 0.75, 1.0, 1.5])), 5, 20))
    offset, joint, mortar = own.choice([0.0, 0.5]), own.choice([0.0, 0.012, 0.018]), _colour(own, (0.1, 0.9))
    if celled and ground is not None:  # a cell of half a drawing and half nothing has no colour
        rgb, joints = _cells(rgb, down, across, offset, joint)
        rgb = np.where(joints[..., None] > 0, mortar, rgb)
    pattern = random_texture(own, size // 2, size / 128).repeat(2, axis=0).repeat(2, axis=1)[..., None]
    strength, shade = own.uniform(0.25, 0.6), _colour(own, (0.05, 0.95))
    if own.random() < (0.4 if celled else 0.75):
        where = pattern * strength * (alpha if own.random() < 0.3 else 1)
        rgb = rgb * (1 - where) + (shade if own.random() < 0.5 else rgb * 0.25) * where
    width, ink = own.uniform(1.5, 3.5), _colour(own, (0.03, 0.25) if own.random() < 0.7 else (0.8, 1.0))
    if own.random() < 0.5:
        line = _edges(rgba, width * size / 128)[..., None]
        rgb, alpha = rgb * (1 - line) + ink * line, np.maximum(alpha, line)
    return np.concatenate([np.clip(rgb, 0, 1), alpha], axis=-1).astype(np.float32)


# fmt: off
MANNERS = [
    "alba", "brio", "corso", "drava", "elmo", "fado", "gusto", "halma", "irma", "jota", "kivu",
    "lento", "mora", "nero", "opal", "piva", "quilo", "rondo", "sarga", "tarn", "umbra", "vela",
    "waldo", "xeno", "yarra", "zingo", "arco", "brava", "cello", "dolma", "etna", "forza",
    "gelo", "hydra", "indra", "jasmin", "koto", "lupe", "murano", "nuvo", "orca", "pesto", "rumba", "siena",
]
# fmt: on

_BY_WORD = (comic, pixel_art, neon, halftone, blueprint, wood, stained_glass, knit, mosaic, marble, brick, sketch, denim, gold)
STYLES: dict[str, Style] = {style.__name__.replace("_", " "): style for style in _BY_WORD} | {
    name: partial(manner, name=name) for name in MANNERS
}
