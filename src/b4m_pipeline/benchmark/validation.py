"""Can the measures be believed? What they say of the true drawings, of which the right order is known."""

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from b4m_pipeline.benchmark.results import References
from b4m_pipeline.evaluation.params import EvaluationParams

_TELLS = {
    **{"content": "content", "content_kept": "content", "style": "style", "style_kept": "style", "colour": "style"},
    **{"s_harm": "", "kept": ""},
}
"""Measure -> what it tells pairs apart by; "": by both."""


def validate_measures(references: dict[str, References], evaluation: EvaluationParams) -> pd.DataFrame:
    """Can the measures tell right from wrong? Is each true drawing nearer to its own pair's pictures than to another pair's, in
    content, style or both? And does it lose in colour and truth_colour if it is recoloured?

    Columns: measure, comparisons (true drawing against each pair of another content or style, or against itself recoloured),
    right (share of these). Empty where no pair has a truth. A measure with a low share is no use in the report.
    """
    known = {name: own for name, own in references.items() if own.truth}
    truths = {name: own.truth for name, own in known.items()}
    scores = {name: _means(own, truths, [], evaluation) for name, own in known.items()}
    hits: dict[str, list[bool]] = {name: [] for name in (*_TELLS, *(f"{colour}, recoloured" for colour in _COLOURS))}
    for name, own in known.items():
        for other in known.keys() - {name}:
            for measure, concept in _TELLS.items():
                if not (concept and _same(own, known[other], concept)):
                    hits[measure].append(scores[name].loc[name, measure] > scores[other].loc[name, measure])
        recoloured = {way: [change(image) for image in own.truth] for way, change in _RECOLOURED.items()}
        found = _means(own, {"": own.truth} | recoloured, own.truth, evaluation)
        for way, images in recoloured.items():
            if [image.tobytes() for image in images] != [image.tobytes() for image in own.truth]:  # grey has no hue
                for measure in _COLOURS:
                    hits[f"{measure}, recoloured"].append(found.loc[way, measure] < found.loc["", measure])
    rows = [(name, len(values), float(np.mean(values))) for name, values in hits.items() if values]
    return pd.DataFrame(rows, columns=["measure", "comparisons", "right"])


def _means(
    own: References, groups: dict[str, list[Image.Image]], truth: list[Image.Image], evaluation: EvaluationParams
) -> pd.DataFrame:
    """Figures of groups of images beside a pair's pictures, a row for each group."""
    pictures = {f"{group}/{index}": image for group, images in groups.items() for index, image in enumerate(images)}
    rows = [(key, key.rsplit("/", 1)[0], "composition", "", "") for key in pictures]
    samples = pd.DataFrame(rows, columns=["picture", "system", "kind", "prompt", "plain"])
    return own.measure(samples, pictures, truth, evaluation).groupby("system").mean(numeric_only=True)


def _turn_hue(image: Image.Image, thirds: int) -> Image.Image:
    """The image with all hues turned by thirds of the circle."""
    hue, *rest = image.convert("HSV").split()
    return Image.merge("HSV", [hue.point(lambda value: (value + 85 * thirds) % 256), *rest]).convert("RGB")


_RECOLOURED = {
    "hue turned by 120 degrees": lambda image: _turn_hue(image, 1),
    "hue turned by 240 degrees": lambda image: _turn_hue(image, 2),
    "inverted": ImageOps.invert,
}
_COLOURS = ("colour", "truth_colour")


def _same(first: References, second: References, concept: str) -> bool:
    """Whether two pairs share their content or style."""
    return [p.tobytes() for p in getattr(first, concept)] == [p.tobytes() for p in getattr(second, concept)]
