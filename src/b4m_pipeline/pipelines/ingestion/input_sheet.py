"""One picture that shows what a run was given: every square with its caption, a row or more for each concept."""

import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.common.sheets import Row, paint_grid

COLUMNS = 8


def draw_sheet(manifest: pd.DataFrame, pictures: dict[str, Image.Image]) -> Image.Image:
    """The manifest's pictures by role and concept, in the manifest's order, with caption and its source. RGB."""
    rows = []
    for (role, concept), group in manifest.groupby(["role", "concept"], sort=False):
        near = group["near_duplicate_of"].astype(bool)
        sources = near.map({True: "near duplicate, ", False: ""}) + group["caption_source"].str.replace("_", " ")
        note = f"{role.replace('_', ' ')} ({group['token'].iloc[0]})\n{len(group)} pictures"
        captions = list(zip(group["caption"], sources, strict=True))
        marked = set(np.flatnonzero(near))
        rows.append(Row(concept, [pictures[key] for key in group["picture"]], note, captions, marked=marked))
    return paint_grid(rows, columns=COLUMNS)
