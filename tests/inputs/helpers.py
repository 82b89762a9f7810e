"""What the tests of captions share."""

import struct

import numpy as np
import pandas as pd
from PIL import Image

from tests.conftest import captioning_params

PARAMS = captioning_params()
WORDS = {"contents": ["red apple", "dog", "umbrella", "car"], "styles": ["twemoji", "oil painting", "neon", "noto"]}


def manifest(*rows):
    columns = ["picture", "role", "concept", "token", "noun", "sidecar"]
    fixed = [("style/ink/x", "style", "ink", "w@z", "emoji", "red apple")]
    return pd.DataFrame([*rows, *fixed], columns=columns)


def noise(size, seed):
    """RGB noise, always the same."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def squares(table, size=16):
    return {key: noise((size, size), index) for index, key in enumerate(table.picture)}


MIXED = manifest(
    ("content/toy/a", "content", "toy", "snq", "toy", ""),
    ("content/toy/b", "content", "toy", "snq", "toy", "neon"),
    ("counterpart_style/oil/a", "counterpart_style", "oil", "qrv", "emoji", ""),
    ("counterpart_content/dog/a", "counterpart_content", "dog", "vtk", "dog", ""),
    ("union/toy-ink/a", "union", "toy-ink", "snq", "toy", ""),
)


ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""XYZ of red, green and blue as Adobe RGB (1998) has them, for the white of D50."""
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def profile(primaries=ADOBE, gamma=2.2, space=b"RGB "):
    """Bytes of an ICC profile (version 2): a gamma for each channel, and what red, green and blue are; or greys (b"GRAY")."""
    curve = struct.pack(">4sIIHH", b"curv", 0, 1, round(gamma * 256), 0)
    xyz = lambda values: struct.pack(">4sI3i", b"XYZ ", 0, *(round(value * 65536) for value in values))  # noqa: E731
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(79), b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {name + b"XYZ": xyz(values) for name, values in zip((b"r", b"g", b"b"), primaries, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    white = struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    header = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + white + bytes(48)
    return header + table + body
