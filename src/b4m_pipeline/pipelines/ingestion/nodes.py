"""Nodes of `ingestion`. Together they do what `inputs.prepare.prepare` does at once."""

from typing import Any

import pandas as pd
from PIL import Image

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs import prepare
from b4m_pipeline.inputs.captions import preserved_prompts
from b4m_pipeline.inputs.folders import Picture, check_folders, list_folders, load_picture, require_folder
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, IngestionParams, PreservationParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.pipelines.ingestion.input_sheet import draw_sheet
from b4m_pipeline.training.params import BreakParams, MakeParams


def draw_counterparts(
    counterparts: CounterpartParams, base_model: BaseModelParams, content: ConceptParams, style: ConceptParams
) -> dict[str, list[dict[str, Any]]]:
    """The counterparts as folders of pictures: fields of CounterpartParams. Those that are words are drawn by the base
    model, unless it did so before."""
    if counterparts.source == "drawn":
        from b4m_pipeline.inputs.counterparts import counterpart_folders

        for folder in list_folders(content, style, CounterpartParams(contents=[], styles=[])):
            require_folder(folder)  # a slip in a path is to be said before minutes of drawing
        counterparts = counterpart_folders(counterparts, base_model, content, style)
    return counterparts.model_dump(include={"contents", "styles"})


def check_pictures(
    content: ConceptParams,
    style: ConceptParams,
    counterparts: dict[str, list[dict[str, Any]]],
    make: MakeParams,
    base_model: BaseModelParams,
    ingestion: IngestionParams,
) -> tuple[dict[str, Image.Image], pd.DataFrame, pd.DataFrame]:
    """Read all folders of the run -> squares by key, manifest without captions, quarantine."""
    folders = list_folders(content, style, CounterpartParams(**counterparts), make.union_path)
    checked = check_folders(folders, base_model.resolution, ingestion)
    return checked.squares, checked.manifest, checked.quarantine


def caption_pictures(
    checked_manifest: pd.DataFrame,
    checked_pictures: dict[str, Image.Image],
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    style: ConceptParams,
    base_model: BaseModelParams | None = None,
) -> tuple[pd.DataFrame, dict[str, Image.Image]]:
    """The manifest that is trained on, with captions and with rows for the content's looks and for further captions, and all of
    its images by key."""
    return prepare.caption_pictures(checked_manifest, checked_pictures, ingestion, captioning, style.token, base_model)


def draw_input_sheet(manifest: pd.DataFrame, pictures: dict[str, Picture]) -> Image.Image:
    """One overview of all pictures with their captions, the content's looks included."""
    shown = manifest[manifest["caption_source"] != prepare.VARIANT]
    return draw_sheet(shown, {key: load_picture(pictures[key]) for key in shown["picture"]})


def encode_pictures(
    manifest: pd.DataFrame,
    pictures: dict[str, Picture],
    base_model: BaseModelParams,
    preservation: PreservationParams,
    content: ConceptParams,
    style: ConceptParams,
    counterparts: dict[str, list[dict[str, Any]]],
    content_break: BreakParams,
    style_break: BreakParams,
    seed: int,
    encoding_cache: str | None,
) -> TrainingSet:
    """The training set: latents and prompt embeddings, computed once by the base's encoders, of the manifest's pictures and
    captions and of the prompts to be preserved, if a break preserves any."""
    from b4m_pipeline.inputs.encode import encode_training_set

    others: list[str] = []
    if content_break.preservation_weight or style_break.preservation_weight:
        others = preserved_prompts(preservation, content, style, CounterpartParams(**counterparts), seed)
    return encode_training_set(manifest, pictures, base_model, others, encoding_cache)
