"""Rehearsal, our addition to the paper: before make, the joined halves draw the content in the style, and make trains on these
images as pictures of the union. Otherwise make sees content's and style's pictures alone, and the content's own look can win
where the prompt names both. The drawings may begin with the content's own pictures in the style's colours
(inputs/palettes.py), so that make also learns what the joined halves cannot draw from noise."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image, ImageOps

from b4m_pipeline.common.seeding import derive_seed
from b4m_pipeline.common.words import fill_prompt
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import settings_of
from b4m_pipeline.inputs.drawings import Drawing, Starts, draw_folders, drawing_folder
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.folders import Folder, Picture
from b4m_pipeline.inputs.palettes import in_colours_of
from b4m_pipeline.inputs.params import CaptioningParams, IngestionParams
from b4m_pipeline.inputs.prepare import Prepared, prepare
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.training.params import RehearsalParams

logger = logging.getLogger(__name__)


def rehearse(
    joined: Adapter,
    contents: Sequence[Image.Image],
    styles: Sequence[Image.Image],
    base_model: BaseModelParams,
    params: RehearsalParams,
    seed: int,
    prefer: Callable[[Mapping[str, list[Image.Image]]], str],
) -> Path:
    """Draw `params.images` images with the joined halves, unless that was done before -> the folder that has them, each with
    its prompt in a text file beside it (see inputs/drawings.py). What the user deletes from it stays deleted, what the user
    adds is trained on. contents, styles: RGB pictures of the two; prefer: drawings by how they begin -> what begins the better
    ones, asked if `params.start` is best."""
    about = joined.metadata
    words = {"content": about["content_token"], "style": about["style_token"]}
    prompts = [fill_prompt(template, words, about["noun"]) for template in params.prompts]
    first = derive_seed(seed, "rehearsal") % 2**31  # not the seeds that evaluation draws with
    asked = [(prompts[index % len(prompts)], first + index) for index in range(params.images)]
    drawings = [Drawing(prompt, own_seed, prompt) for prompt, own_seed in asked]
    settings = settings_of(params, base_model.resolution)
    weights = {key: value.double().sum().item() for key, value in joined.tensors.items()}
    starts = None if params.start == "noise" else _starts(contents, styles, base_model.resolution, params)
    begun = starts and starts.digest()
    folder = drawing_folder(params.folder, about["name"], drawings, base_model, settings, [weights, params.start, begun])
    if folder.exists():
        logger.info("Rehearsal: the pictures in %s are used", folder)
        return folder
    ways = {way: own for way, own in (("pictures", starts), ("noise", None)) if params.start in ("best", way)}
    candidates = {way: folder.with_name(f"{folder.name}.{way}") for way in ways}
    for way, candidate in candidates.items():
        draw_folders({candidate: drawings}, base_model, settings, joined, ways[way])
    shown = {way: [Image.open(file).convert("RGB") for file in sorted(path.glob("*.png"))] for way, path in candidates.items()}
    kept = prefer(shown) if len(ways) > 1 else params.start
    candidates.pop(kept).rename(folder)
    for other in candidates.values():
        shutil.rmtree(other)
    logger.info(
        "Rehearsal: drawings that begin with %s, in %s. Delete what is bad, add your own, and run joint_make again",
        kept,
        folder,
    )
    return folder


def _starts(contents: Sequence[Image.Image], styles: Sequence[Image.Image], side: int, params: RehearsalParams) -> Starts:
    """The content's pictures in the style's colours, one for each drawing, squares of `side` pixels."""
    shapes, colours = (
        [ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS) for picture in given] for given in (contents, styles)
    )
    return Starts(in_colours_of(shapes, colours, params.images), params.strength)


def with_rehearsal(
    training_set: TrainingSet,
    manifest: pd.DataFrame,
    pictures: Mapping[str, Picture],
    folder: Path,
    joined: Adapter,
    base_model: BaseModelParams,
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    cache: str | None,
) -> tuple[TrainingSet, Prepared]:
    """The training set with the folder's pictures in the role union, and these as they were prepared. manifest, pictures: what
    the training set was encoded from. Raises PicturesError if the folder has no picture any more."""
    about = joined.metadata
    union = Folder(
        "union", f"{about['name']}-rehearsal", about["content_token"], about["noun"], folder, "make.rehearsal.folder"
    )
    rehearsed = prepare([union], base_model.resolution, ingestion, captioning, about["style_token"], base_model)
    rows = pd.concat([manifest, rehearsed.manifest], ignore_index=True)
    every = {**pictures, **rehearsed.pictures}
    return encode_training_set(rows, every, base_model, training_set.others, cache), rehearsed
