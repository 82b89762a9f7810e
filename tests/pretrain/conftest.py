"""A corpus of eight drawings."""

import numpy as np
import pandas as pd
import pytest

from b4m_pipeline.pretrain import text
from b4m_pipeline.pretrain.corpus import Drawings
from tests.pretrain.helpers import PARAMS


@pytest.fixture(scope="session")
def drawings() -> Drawings:
    """Squares and crosses in two colours."""
    rgba, rows = np.zeros((8, 32, 32, 4), np.uint8), []
    for index in range(8):
        colour = [(200, 30, 30), (30, 30, 200)][index % 2]
        if index < 4:
            rgba[index, 8:24, 8 + index : 24] = (*colour, 255)
        else:
            rgba[index, 14:18, 4 : 24 + index] = rgba[index, 4:28, 14:18] = (*colour, 255)
        content, hand = ("square", "cross")[index // 4], ("red", "blue")[index % 2]
        rows.append((content, hand, hand, "train", "shape", "CC0"))
    return Drawings(rgba, pd.DataFrame(rows, columns=["content", "hand", "style", "split", "keywords", "licence"]))


@pytest.fixture(scope="session")
def tokenizer(drawings):
    captions = text.caption_corpus(drawings.table, PARAMS.captions, PARAMS.text.placeholders, 0)
    return text.train_tokenizer(captions, PARAMS.text)
