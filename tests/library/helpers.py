"""A small library and its pipeline's nodes in order."""

from pathlib import Path

from PIL import Image

from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.library.params import LibraryParams
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines.library import nodes
from b4m_pipeline.training.params import BreakParams
from tests.conftest import (
    PLAIN_EVALUATION,
    TINY_FRAME,
    captioning_params,
    counterpart_params,
    ingestion_params,
    preservation_params,
)
from tests.training import helpers as training

CONTENT = ConceptParams(path="any", token="snq", noun="toy")
STYLE = ConceptParams(path="any", token="w@z", noun="toy")
BREAK = training.BREAK | {"steps": 3}


def folder(path: Path, colour: tuple[int, int, int], count: int = 2) -> Path:
    path.mkdir(parents=True)
    for index in range(count):
        picture = Image.effect_noise((40, 40), 60).convert("RGB")
        picture.paste(colour, (4 + 6 * index, 8, 24 + 6 * index, 30))
        picture.save(path / f"{index}.png")
    return path


def params(shelf: Path, **changes) -> LibraryParams:
    return LibraryParams(**({"table": str(shelf / "library.csv"), "pairs": "all", "folder": str(shelf / "adapters")} | changes))


def run(shelf: Path, base, **changes):
    """The pipeline's nodes in order; returns trained, composed, the two tables and the sheet."""
    counterparts = counterpart_params(
        contents=[ConceptParams(path=str(shelf / "koala"), token="ohwx")],
        styles=[ConceptParams(path=str(shelf / "noto"), token="qrv")],
    )
    evaluation = EvaluationParams(
        prompts=["{article} {content} {noun} in {style} style"], content_prompt="{content}", style_prompt="{style}",
        samples=2, steps=2, **PLAIN_EVALUATION,
    )  # fmt: skip
    half = BreakParams(**BREAK)
    entries, pairs, settings = nodes.read_library(
        params(shelf, **changes), CONTENT, STYLE, counterparts, base, FrameParams(**TINY_FRAME), half, half,
        ingestion_params(), captioning_params(), preservation_params(), evaluation, 0,
        str(shelf / "checkpoints"), True, str(shelf / "encoded"),
    )  # fmt: skip
    trained, halves = nodes.train_library(entries, settings)
    composed, table = nodes.compose_library(entries, pairs, trained, settings)
    return trained, composed, halves, table, nodes.show_library(entries, composed, settings)
