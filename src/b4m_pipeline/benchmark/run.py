"""Every method on every pair: trained, drawn and measured in one run, with what is finished kept on disk.

A (pair, method, seed) is a folder with its pictures and `record.json`: what it was made from (a fingerprint), figures, time, or
the error. One that is there with the same fingerprint is not done again; one that failed is tried again.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from b4m_pipeline.benchmark.all_methods import METHODS
from b4m_pipeline.benchmark.params import BenchmarkParams
from b4m_pipeline.benchmark.results import TRUE_DRAWING, BenchmarkError, References, Result, load_result, save_result, slug
from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.provenance import code_version, digest_of
from b4m_pipeline.common.words import fill_prompt, words_of
from b4m_pipeline.diffusion.families import base_model_id, weights_digest
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.judges import EfficientNetJudge
from b4m_pipeline.evaluation.measures import similarity
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import BASE, KNOWN, SampleRequest, draw_samples, known_requests
from b4m_pipeline.training.params import TrainParams

logger = logging.getLogger(__name__)


def check_methods(params: BenchmarkParams) -> None:
    """Raise BenchmarkError for a name that is no method's."""
    if unknown := [name for name in params.methods if name not in METHODS]:
        raise BenchmarkError(f"benchmark.methods: unknown {unknown}; known are {list(METHODS)}")


def require_equal_budgets(*stages: TrainParams) -> None:
    """Raise BenchmarkError if a stage of ours would hold pictures back, which all other methods are trained on."""
    if any(stage.validation.pictures for stage in stages):
        raise BenchmarkError("validation.pictures must be 0 in a benchmark: other methods learn from what ours would hold back")


def requests_of(task: Task, method: str, evaluation: EvaluationParams) -> list[SampleRequest]:
    """The composition prompt with each seed; no two seeds of a task share one. The base model is asked in plain words, all
    others by the tokens."""
    names = {"content": words_of(task.content.name), "style": words_of(task.style.name)}
    tokens = {"content": task.content.token, "style": task.style.token}
    template, noun = evaluation.prompts[0], task.content.noun
    plain = fill_prompt(template, names, noun)
    prompt = plain if method == "base" else fill_prompt(template, tokens, noun)
    first = task.seed * evaluation.samples
    return [SampleRequest(prompt, first + index, method, "composition", plain) for index in range(evaluation.samples)]


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
        [references.things, [asdict(request) for request in references.known]],
        weights_digest(evaluation.clip),
        task.trained_on(task.content_break),
    )


def run_method(task: Task, method: str, references: References, evaluation: EvaluationParams) -> Result:
    """Train a method on a pair, draw with what it gives, measure that. Its seconds are those of all its trainings, also of
    those that another method or pair had done already."""
    start, task.shelf.reused = time.monotonic(), 0.0
    adapter = METHODS[method](task)
    seconds = time.monotonic() - start + task.shelf.reused
    requests = requests_of(task, method, evaluation)
    pictures = draw_samples(requests, {method: adapter}, task.base_model, evaluation)
    samples = pd.DataFrame([request.row() for request in requests])
    measured = references.measure(samples, pictures, references.truth, evaluation)
    images = [pictures[key] for key in samples["picture"]]
    measured = add_leaks(measured, images, references, EfficientNetJudge())
    return Result(task.name, method, measured, pictures, seconds, code=code_version(), seed=task.seed)


def draw_known(
    things: Sequence[str | None], base_model: BaseModelParams, evaluation: EvaluationParams, folder: Path, seed: int
) -> dict[SampleRequest, Image.Image]:
    """The base model's drawings of what a style's pictures show (see `known_requests`), kept in `folder` by all that they are
    made of."""
    requests = known_requests(things, evaluation.samples, seed)
    if not requests:
        return {}
    drawn_with = [base_model_id(base_model), *base_model.model_dump(include={"variant", "vae", "resolution"}).values()]
    drawn_with += [evaluation.steps, evaluation.guidance_scale, pick_device(evaluation.device)]
    fingerprint = digest_of(drawn_with, [asdict(request) for request in requests])
    kept = load_result(folder / fingerprint, fingerprint)
    if not kept:
        kept = Result("", KNOWN, pd.DataFrame(), draw_samples(requests, {BASE: None}, base_model, evaluation), seed=seed)
        save_result(kept, folder / fingerprint, fingerprint)
    return {request: kept.pictures[request.key] for request in requests}


def measure_truth(task: Task, references: References, evaluation: EvaluationParams) -> Result | None:
    """The true drawings' own figures, but for those that tell how near they are to themselves; None where no true drawing is
    known."""
    if not references.truth:
        return None
    pictures = {f"{TRUE_DRAWING}/{index}": image for index, image in enumerate(references.truth)}
    plain = requests_of(task, "base", evaluation)[0].plain
    samples = pd.DataFrame({"picture": list(pictures), "kind": "composition", "prompt": plain, "plain": plain})
    return Result(task.name, TRUE_DRAWING, references.measure(samples, pictures, [], evaluation), pictures, seed=task.seed)


def run_pair(
    task: Task,
    references: References,
    params: BenchmarkParams,
    evaluation: EvaluationParams,
    report: Callable[[Result], None] | None = None,
) -> list[Result]:
    """All methods on one pair, each with its seeds. A method that fails is recorded with its error and the others go on.
    report: called with each result, those from an earlier run included."""
    results: list[Result] = []
    tried = [(name, each) for name in params.methods for each in params.seeds_of(name)]
    for place, (method, offset) in enumerate(tried, start=1):
        own = replace(task, seed=task.seed + offset)
        folder = Path(params.folder) / task.name / slug(method) / str(own.seed)
        fingerprint = fingerprint_of(own, method, evaluation, references)
        result = load_result(folder, fingerprint)
        said = f"{task.name}, {place} of {len(tried)}: {method}, seed {own.seed}"
        if result:
            logger.info("%s: done before", said)
        else:
            logger.info("%s", said)
            try:
                result = run_method(own, method, references, evaluation)
            except (ValueError, RuntimeError, OSError) as error:
                logger.warning("%s failed: %s", said, error)
                message = f"{type(error).__name__}: {error}"
                result = Result(task.name, method, pd.DataFrame(), {}, error=message, seed=own.seed)
            save_result(result, folder, fingerprint)
        results.append(result)
        if report:
            report(result)
    return results
