"""Every method on every pair: trained, drawn and measured in one run, with what is finished kept on disk.

A (pair, method) is a folder with its pictures and `record.json`: what it was made from (a fingerprint), figures, time, or the
error. One that is there with the same fingerprint is not done again; one that failed is tried again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.benchmark.all_methods import METHODS
from b4m_pipeline.benchmark.params import BenchmarkParams
from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.common.provenance import code_version, digest_of
from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.common.words import fill_prompt, words_of
from b4m_pipeline.diffusion.families import base_model_id, weights_digest
from b4m_pipeline.evaluation.judges import EfficientNetJudge
from b4m_pipeline.evaluation.measures import similarity
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import SampleRequest, draw_samples
from b4m_pipeline.evaluation.table import measure
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.training.params import TrainParams

logger = logging.getLogger(__name__)

RECORD = "record.json"
FIGURES = {
    "content": "content",
    "style": "style",
    "s_harm": "S_harm",
    "truth": "truth",
    "truth_distance": "distance to truth",
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

    def figures(self) -> dict[str, float]:
        """Means over the pictures, and how much these differ from each other."""
        return {name: float(self.measured[name].mean()) for name in FIGURES if name in self.measured}


def check_methods(params: BenchmarkParams) -> None:
    """Raise BenchmarkError for a name that is no method's."""
    if unknown := [name for name in params.methods if name not in METHODS]:
        raise BenchmarkError(f"benchmark.methods: unknown {unknown}; known are {list(METHODS)}")


def require_equal_budgets(*stages: TrainParams) -> None:
    """Raise BenchmarkError if a stage of ours would hold pictures back, which all other methods are trained on."""
    if any(stage.validation.pictures for stage in stages):
        raise BenchmarkError("validation.pictures must be 0 in a benchmark: other methods learn from what ours would hold back")


def requests_of(task: Task, method: str, evaluation: EvaluationParams) -> list[SampleRequest]:
    """The composition prompt with each seed; the base model is asked in plain words, all others by the tokens."""
    names = {"content": words_of(task.content.name), "style": words_of(task.style.name)}
    tokens = {"content": task.content.token, "style": task.style.token}
    template, noun = evaluation.prompts[0], task.content.noun
    plain = fill_prompt(template, names, noun)
    prompt = plain if method == "base" else fill_prompt(template, tokens, noun)
    return [SampleRequest(prompt, task.seed + index, method, "composition", plain) for index in range(evaluation.samples)]


def add_leaks(
    measured: pd.DataFrame, images: list[Image.Image], references: References, judge: EfficientNetJudge
) -> pd.DataFrame:
    """content_leak: how much nearer the pictures are to the *content* of the style's pictures than the true drawing is;
    style_leak: how much nearer to the *style* of the content's pictures. Needs the truth; diversity, the mean distance of the
    pictures to each other in content features, does not."""
    table, seen = measured.copy(), judge.look(images)
    if references.truth:
        true, content, style = (judge.look(pictures) for pictures in (references.truth, references.content, references.style))
        table["content_leak"] = (
            similarity(seen.content, style.content) - similarity(true.content, style.content).mean()
        ).numpy()
        table["style_leak"] = (similarity(seen.style, content.style) - similarity(true.style, content.style).mean()).numpy()
    alike = (seen.content @ seen.content.T).numpy()
    others = ~np.eye(len(images), dtype=bool)
    table["diversity"] = 1 - alike[others].mean() if len(images) > 1 else np.nan
    return table


def fingerprint_of(task: Task, method: str, evaluation: EvaluationParams, references: References) -> str:
    """Everything that decides a result but the code: pictures, the true drawings included, base model, judges, number format,
    parameters, seed."""
    data = [task.training_set.digest("content", "style", "counterpart_content", "counterpart_style"), task.training_set.others]
    models = [task.frame, task.content_break, task.style_break, task.make, task.competitors, evaluation]
    concepts = [(concept.name, concept.token, concept.noun) for concept in (task.content, task.style)]
    return digest_of(
        *(method, base_model_id(task.base_model), data, concepts, [model.model_dump() for model in models], task.seed),
        [hashlib.sha256(picture.tobytes()).hexdigest() for picture in references.truth],
        weights_digest(evaluation.clip),
        task.trained_on(task.content_break),
    )


def run_method(task: Task, method: str, references: References, evaluation: EvaluationParams) -> Result:
    """Train a method on a pair, draw with what it gives, measure that. Its seconds are those of all its trainings, also of
    those that another method or pair had done already."""
    start, task.shelf.reused = time.monotonic(), 0.0
    adapter: Adapter | None = METHODS[method](task)
    seconds = time.monotonic() - start + task.shelf.reused
    requests = requests_of(task, method, evaluation)
    pictures = draw_samples(requests, {method: adapter}, task.base_model, evaluation)
    samples = pd.DataFrame([request.row() for request in requests])
    measured = measure(samples, pictures, references.content, references.style, references.truth, evaluation)
    images = [pictures[key] for key in samples["picture"]]
    measured = add_leaks(measured, images, references, EfficientNetJudge())
    return Result(task.name, method, measured, pictures, seconds, code=code_version())


def measure_truth(pair: str, references: References, evaluation: EvaluationParams) -> Result | None:
    """The true drawings' own content, style and S_harm, as a Result; None where no true drawing is known."""
    if not references.truth:
        return None
    keys = [f"{TRUE_DRAWING}/{index}" for index in range(len(references.truth))]
    samples = pd.DataFrame({"picture": keys, "kind": "composition"})
    pictures = dict(zip(keys, references.truth, strict=True))
    without_clip = evaluation.model_copy(update={"clip": None})
    measured = measure(samples, pictures, references.content, references.style, [], without_clip)
    return Result(pair, TRUE_DRAWING, measured, pictures)


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
    }
    partial = folder / (RECORD + ".partial")
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(folder / RECORD)


def load_result(folder: Path, fingerprint: str) -> Result | None:
    """What `save_result` wrote, or None if there is nothing, or something else's, or a failure."""
    try:
        record = json.loads((folder / RECORD).read_text())
        if record["fingerprint"] != fingerprint or record["error"]:
            return None
        pictures = {}
        for index, key in enumerate(record["keys"]):
            with Image.open(folder / f"{index}.png") as image:
                pictures[key] = image.convert("RGB")
        measured = pd.DataFrame(record["measured"])
        return Result(record["pair"], record["method"], measured, pictures, record["seconds"], code=record["code"])
    except (OSError, KeyError, ValueError):
        return None


def slug(name: str) -> str:
    """A method's name as a folder's."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())


def run_pair(
    task: Task,
    references: References,
    params: BenchmarkParams,
    evaluation: EvaluationParams,
    report: Callable[[Result], None] | None = None,
) -> list[Result]:
    """All methods on one pair. A method that fails is recorded with its error and the others go on. report: called with each
    result, those from an earlier run included."""
    results = []
    for method in params.methods:
        folder = Path(params.folder) / task.name / slug(method)
        fingerprint = fingerprint_of(task, method, evaluation, references)
        result = load_result(folder, fingerprint)
        if result:
            logger.info("%s, %s: done before", task.name, method)
        else:
            logger.info("%s, %s", task.name, method)
            try:
                result = run_method(task, method, references, evaluation)
            except (ValueError, RuntimeError, OSError) as error:
                logger.warning("%s, %s failed: %s", task.name, method, error)
                result = Result(task.name, method, pd.DataFrame(), {}, error=f"{type(error).__name__}: {error}")
            save_result(result, folder, fingerprint)
        results.append(result)
        if report:
            report(result)
    return results


def validate_measures(references: dict[str, References]) -> pd.DataFrame:
    """Can the measures tell right from wrong? On the true drawings: is each nearer to its own content's (style's) pictures than
    to another pair's?

    Columns: measure, comparisons (true drawing against each other content or style), right (share of these). content, style,
    s_harm. Empty where fewer than two pairs have a truth. A measure with a low share is no use in the report.
    """
    judge, rows = EfficientNetJudge(), []
    known = {name: own for name, own in references.items() if own.truth}
    seen = {
        name: {kind: judge.look(getattr(own, kind)) for kind in ("content", "style", "truth")} for name, own in known.items()
    }

    def score(name: str, other: str, kind: str) -> float:
        return float(similarity(getattr(seen[name]["truth"], kind), getattr(seen[other][kind], kind)).mean())

    hits: dict[str, list[bool]] = {"content": [], "style": [], "s_harm": []}
    for name in known:
        own = {kind: score(name, name, kind) for kind in ("content", "style")}
        for other in known:
            if other == name:
                continue
            theirs = {kind: score(name, other, kind) for kind in ("content", "style")}
            for kind in ("content", "style"):
                if not _same(known[name], known[other], kind):
                    hits[kind].append(own[kind] > theirs[kind])
            hits["s_harm"].append(_harmonic(own) > _harmonic(theirs))
    for measure_name, values in hits.items():
        if values:
            rows.append((measure_name, len(values), float(np.mean(values))))
    return pd.DataFrame(rows, columns=["measure", "comparisons", "right"])


def _same(first: References, second: References, kind: str) -> bool:
    """Whether two pairs share their content or style."""
    return [p.tobytes() for p in getattr(first, kind)] == [p.tobytes() for p in getattr(second, kind)]


def _harmonic(similarities: dict[str, float]) -> float:
    content, style = (max(0.0, similarities[kind]) for kind in ("content", "style"))
    return 2 * content * style / max(1e-9, content + style)


def table_of(results: list[Result]) -> pd.DataFrame:
    """A row for each (pair, method): its figures, seconds, error."""
    rows = [
        {"pair": r.pair, "method": r.method}
        | r.figures()
        | {"seconds": r.seconds, "pictures": len(r.pictures), "code": r.code, "error": r.error}
        for r in results
    ]
    return pd.DataFrame(rows)


def compare(table: pd.DataFrame, ours: str, seed: int, draws: int = 4000) -> pd.DataFrame:
    """Each method's mean over the pairs and its difference to ours, pair by pair, with 95 % bootstrap intervals over pairs.

    Columns: method, measure, pairs, mean, low, high, difference, difference_low, difference_high. Pairs are what is drawn
    anew, as seeds of one pair are no independent evidence about methods; a method's missing pairs are missing for the
    difference too. Raises BenchmarkError if ours has no result.
    """
    done = table[table["error"] == ""]
    if ours not in set(done["method"]):
        raise BenchmarkError(f"benchmark.ours: {ours!r} has no result, so there is nothing to compare with: see the errors")
    rows = []
    for name in (name for name in FIGURES if name in done):
        wide = done.pivot(index="pair", columns="method", values=name)
        for method in [m for m in dict.fromkeys(table["method"]) if m in wide]:
            values = wide[method].dropna()
            paired = (wide[method] - wide[ours]).dropna()
            if values.empty:
                continue
            row = {"method": method, "measure": name, "pairs": len(values), "mean": values.mean()}
            row["low"], row["high"] = _interval(values.to_numpy(), draws, seed, method, name)
            if len(paired):
                row["difference"] = paired.mean()
                row["difference_low"], row["difference_high"] = _interval(paired.to_numpy(), draws, seed, method, name)
            rows.append(row)
    return pd.DataFrame(rows)


def _interval(values: np.ndarray, draws: int, *key) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean."""
    rng = numpy_generator("benchmark", *key)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
