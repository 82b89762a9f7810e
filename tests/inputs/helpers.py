"""What the tests of captions share."""

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
