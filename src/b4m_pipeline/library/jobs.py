"""A library of halves: N contents and M styles are trained once each, and any content goes with any style.

The jobs here are functions of plain data, so that they run in this process or on another machine (see fan_out.py). All contents
of a library share one token, and all styles another: a pair has one of each, and contents' halves have met the style's token.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.words import fill_prompt, words_of
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.evaluation.evaluate import find_truth
from b4m_pipeline.evaluation.samples import SampleRequest, draw_samples
from b4m_pipeline.evaluation.table import measure
from b4m_pipeline.inputs.captions import preserved_prompts
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.folders import check_folders, list_concept_folders, load_picture
from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams
from b4m_pipeline.inputs.prepare import prepare
from b4m_pipeline.library.reuse import start_of, train_or_reuse
from b4m_pipeline.library.table import Composed, Entry, Kind, LibraryError, Settings, Trained
from b4m_pipeline.method.adapter import RECIPE_KEY, URI_KEY
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.adapters import alias_of, fetch_adapter, find_joined, keep_registered, register_adapter
from b4m_pipeline.registry.tracking import log_metrics, log_picture
from b4m_pipeline.training.stages import BreakStage

logger = logging.getLogger(__name__)

_HELD = 8  # halves, and concepts' pictures
_SHOWN = 224  # pixels of a picture's longer side


def train_entry(entry: Entry, settings: Settings) -> Trained:
    """Train one half and register it, in an MLflow run of its own; one that the registry has from the same pictures, parameters
    and code is not trained again. An error ends in the result: other jobs go on."""
    begun = time.monotonic()
    try:
        with _at_home(settings), _run(settings, entry.name):
            uri = _train(entry, settings)
    except Exception as error:  # one wrong folder or a full disk must not take the others' hours with it
        logger.exception("%s could not be trained", entry.name)
        return Trained(entry.kind, entry.concept.name, error=_one_line(error))
    return Trained(entry.kind, entry.concept.name, uri, time.monotonic() - begun)


def _train(entry: Entry, settings: Settings) -> str:
    other: Kind = "style" if entry.kind == "content" else "content"
    own = Path(entry.concept.path).expanduser().resolve()
    partners = CounterpartParams(
        **{
            kinds: [partner for partner in getattr(settings.counterparts, kinds) if Path(partner.path).resolve() != own]
            for kinds in ("contents", "styles")
        }
    )
    folders = list_concept_folders(entry.kind, entry.concept, getattr(partners, f"{other}s"))
    base, style_token = settings.base_model, settings.tokens["style"]
    prepared = prepare(folders, base.resolution, settings.ingestion, settings.captioning, style_token, base)
    tokens = {kind: entry.concept.model_copy(update={"token": token}) for kind, token in settings.tokens.items()}
    params, others = settings.breaks[entry.kind], list[str]()
    if params.preservation_weight:
        words, counterparts = settings.preservation, settings.counterparts
        others = preserved_prompts(words, tokens["content"], tokens["style"], counterparts, settings.seed)
    cache = settings.encoding_cache
    training_set = encode_training_set(prepared.manifest, prepared.pictures, settings.base_model, others, cache)
    about = (training_set, settings.base_model, settings.frame, entry.concept, params, settings.seed)
    stage = BreakStage(entry.kind, *about, start_of(params, f"{entry.kind}_break"))
    half, _ = train_or_reuse(stage, settings.checkpoints, settings.reuse)
    folder = Path(settings.library.folder) / f"{entry.kind}-{entry.concept.name}"
    return _register(half, folder, settings)


def _register(adapter, folder: Path, settings: Settings) -> str:
    """Write the adapter, and register it unless the registry has it already; returns its version."""
    save_adapter(adapter, folder)
    alias = alias_of(adapter, settings.library.alias, settings.library.trial.model_dump())
    if uri := adapter.metadata.get(URI_KEY):
        keep_registered(folder, uri, alias)
        return uri
    drawn = {"num_inference_steps": settings.evaluation.steps, "guidance_scale": settings.evaluation.guidance_scale}
    return register_adapter(folder, alias=alias, prefix=settings.library.prefix, inference=drawn)["uri"]


def compose_pairs(pairs: list[tuple[Entry, str, Entry, str]], settings: Settings) -> list[Composed]:
    """Join halves, given with their versions in the registry, register the result, draw the first prompt with every pair and
    measure it. No training. The base model is loaded once for all; of adapters and pictures few are held at a time, however
    many pairs there are."""
    results, pipeline = [], None
    with _at_home(settings):
        half = lru_cache(_HELD)(fetch_adapter)
        entries = {entry.name: entry for pair in pairs for entry in (pair[0], pair[2])}
        squares = lru_cache(_HELD)(lambda name: references_of(entries[name], settings))
        for content, content_uri, style, style_uri in tqdm(pairs, desc="composing", mininterval=1.0):
            results.append(result := Composed(content.concept.name, style.concept.name))
            try:
                joined = join_halves(half(content_uri), half(style_uri), settings.frame.content_side)
                if settings.reuse and (found := find_joined(joined.metadata[RECIPE_KEY])):
                    joined = found
                with _run(settings, f"pair {result.name}"):
                    result.uri = _register(joined, Path(settings.library.folder) / f"pair-{result.name}", settings)
            except Exception as error:  # as in train_entry
                logger.exception("%s could not be composed", result.name)
                result.error = _one_line(error)
                continue
            if pipeline is None:
                pipeline = load_family(settings.base_model).load_pipeline(pick_device(settings.evaluation.device))
            own = _requests(result.name, content.concept, style.concept, settings)
            drawn = draw_samples(own, {result.name: joined}, settings.base_model, settings.evaluation, pipeline)
            result.pictures = [drawn[request.key] for request in own]
            result.measured = _measure(result, own, squares(content.name), squares(style.name), settings)
            result.pictures = [_small(picture) for picture in result.pictures]
    return results


def _small(picture: Image.Image) -> Image.Image:
    """For the sheet: all pairs' pictures come together in one process, and MLflow has them in full."""
    return ImageOps.contain(picture, (_SHOWN, _SHOWN)) if max(picture.size) > _SHOWN else picture


def references_of(entry: Entry, settings: Settings) -> list[Image.Image]:
    """An entry's pictures as they are trained on."""
    folders = list_concept_folders(entry.kind, entry.concept, [])
    checked = check_folders(folders, settings.base_model.resolution, settings.ingestion)
    return [load_picture(picture) for picture in checked.squares.values()]


def _requests(system: str, content: ConceptParams, style: ConceptParams, settings: Settings) -> list[SampleRequest]:
    template = settings.evaluation.prompts[0]
    prompt = fill_prompt(template, {"content": content.token, "style": style.token}, content.noun)
    plain = fill_prompt(template, {"content": words_of(content.name), "style": words_of(style.name)}, content.noun)
    seeds = range(settings.seed, settings.seed + settings.evaluation.samples)
    return [SampleRequest(prompt, seed, system, "composition", plain) for seed in seeds]


def _measure(
    result: Composed, requests: list[SampleRequest], content: list[Image.Image], style: list[Image.Image], settings: Settings
) -> pd.DataFrame:
    """Figures of a pair's pictures; their means go to the pair's version in the registry."""
    params = settings.evaluation
    truth = find_truth(params, result.content, result.style, settings.base_model.resolution)
    samples = pd.DataFrame([request.row() for request in requests])
    pictures = dict(zip(samples["picture"], result.pictures, strict=True))
    measured = measure(samples, pictures, content, style, truth, params)
    means = measured.select_dtypes("number").drop(columns="seed").mean().dropna()
    with _run(settings, f"figures {result.name}"):
        log_metrics({f"library.{name}": float(value) for name, value in means.items()}, result.uri)
        for index, picture in enumerate(result.pictures):
            log_picture(picture, f"{result.name}-{index}")
    return measured


@contextmanager
def _at_home(settings: Settings) -> Iterator[None]:
    """Work in the project's folder, wherever this process was started, and with its MLflow store."""
    import mlflow

    if not Path(settings.folder).is_dir():
        raise LibraryError(f"this machine has no folder {settings.folder}: workers need the project and its data at one path")
    before, uri = Path.cwd(), mlflow.get_tracking_uri()
    os.chdir(settings.folder)
    if settings.tracking:
        mlflow.set_tracking_uri(settings.tracking["uri"])
    try:
        yield
    finally:
        os.chdir(before)
        mlflow.set_tracking_uri(uri)


@contextmanager
def _run(settings: Settings, name: str) -> Iterator[None]:
    """An MLflow run under the library's; without one, work goes on unlogged."""
    import mlflow

    if not settings.tracking:
        yield
        return
    about = settings.tracking
    with mlflow.start_run(run_name=name, experiment_id=about["experiment"], parent_run_id=about["run"], nested=True):
        yield


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
