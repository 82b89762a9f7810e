"""What a pair is judged by, what a method made of it, and how that is kept on disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from PIL import Image

from b4m_pipeline.common.whole_files import write_whole
from b4m_pipeline.evaluation import table
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import KNOWN, SampleRequest

RECORD = "record.json"
FIGURES = {
    "kept": "kept",
    "content_kept": "content kept",
    "style_kept": "style kept",
    "content": "content",
    "style": "style",
    "colour": "colour",
    "s_harm": "S_harm",
    "truth": "truth",
    "truth_distance": "distance to truth",
    "truth_colour": "colour of truth",
    "prompt_clip": "prompt",
    "content_leak": "style's content leaked",
    "style_leak": "content's style leaked",
    "diversity": "diversity",
}
"""What is reported, and the words for it."""
TRUE_DRAWING = "true drawing"
"""Name in tables of the figures that the truth itself has: a method with more content keeps more of the content's pictures than
a drawing in this style should."""
LOWER_IS_BETTER = {"truth_distance", "content_leak", "style_leak"}


class BenchmarkError(ValueError):
    """A benchmark that cannot be run, or in which nothing could be measured."""


@dataclass
class References:
    """Pictures that a pair is judged by."""

    content: list[Image.Image] = field(repr=False)
    style: list[Image.Image] = field(repr=False)
    truth: list[Image.Image] = field(repr=False)
    things: list[str | None] = field(default_factory=list)
    """What each of the style's pictures shows, in plain words; None: not known."""
    known: dict[SampleRequest, Image.Image] = field(default_factory=dict, repr=False)
    """The base model's drawings of these things."""

    def measure(
        self, samples: pd.DataFrame, pictures: dict[str, Image.Image], truth: list[Image.Image], evaluation: EvaluationParams
    ) -> pd.DataFrame:
        """`evaluation.table.measure` of the samples, with these references."""
        rows = [samples, pd.DataFrame([request.row() for request in self.known])] if self.known else [samples]
        drawn = pictures | {request.key: image for request, image in self.known.items()}
        shown = self.content, self.style, truth, evaluation, self.things
        measured = table.measure(pd.concat(rows, ignore_index=True), drawn, *shown)
        return measured[measured["kind"] != KNOWN].reset_index(drop=True)


@dataclass
class Result:
    """What one method made of one pair. measured: a row for each picture (see `evaluation.measure`), with leaks."""

    pair: str
    method: str
    measured: pd.DataFrame = field(repr=False)
    pictures: dict[str, Image.Image] = field(repr=False)
    seconds: float = 0.0
    error: str = ""
    code: str = ""
    """Version of the code that made it."""
    seed: int = 0
    """What it was trained with."""

    def figures(self) -> dict[str, float]:
        """Means over the pictures, and how much these differ from each other."""
        return {name: float(self.measured[name].mean()) for name in FIGURES if name in self.measured}


def save_result(result: Result, folder: Path, fingerprint: str) -> None:
    """Write pictures first and the record last, so that a record stands for a whole result."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    for index, key in enumerate(result.pictures):
        result.pictures[key].save(folder / f"{index}.png")
    record = {
        "fingerprint": fingerprint,
        "pair": result.pair,
        "method": result.method,
        "seconds": round(result.seconds, 1),
        "error": result.error,
        "code": result.code,
        "keys": list(result.pictures),
        "measured": result.measured.to_dict("list"),
        "seed": result.seed,
    }
    write_whole(folder / RECORD, json.dumps(record, indent=1))


def load_result(folder: Path, fingerprint: str) -> Result | None:
    """What `save_result` wrote, or None if there is nothing, or something else's, or a failure."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["fingerprint"] != fingerprint or record["error"]:
            return None
        pictures = {}
        for index, key in enumerate(record["keys"]):
            with Image.open(folder / f"{index}.png") as image:
                pictures[key] = image.convert("RGB")
        measured = pd.DataFrame(record["measured"])
        about = {name: record[name] for name in ("seconds", "code", "seed")}
        return Result(record["pair"], record["method"], measured, pictures, **about)
    except (OSError, KeyError, ValueError):
        return None


def slug(name: str) -> str:
    """A method's name as a folder's."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())
