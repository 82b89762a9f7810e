"""Nodes of `ingestion`."""

import pandas as pd
from PIL import Image

from b4m_pipeline.common.config import (
    BaseModelParams,
    CaptioningParams,
    ConceptParams,
    CounterpartParams,
    IngestionParams,
    MakeParams,
    PreservationParams,
)
from b4m_pipeline.inputs import captioning
from b4m_pipeline.inputs.folders import Picture, check_folders, list_folders, load_picture
from b4m_pipeline.inputs.input_sheet import draw_sheet
from b4m_pipeline.inputs.looks import add_content_looks


def check_pictures(
    content: ConceptParams,
    style: ConceptParams,
    counterparts: CounterpartParams,
    make: MakeParams,
    base_model: BaseModelParams,
    ingestion: IngestionParams,
) -> tuple[dict[str, Image.Image], pd.DataFrame, pd.DataFrame]:
    """Read all folders of the run -> squares by key, manifest without captions, quarantine."""
    folders = list_folders(content, style, counterparts, make.union_path)
    checked = check_folders(folders, base_model.resolution, ingestion)
    return checked.squares, checked.manifest, checked.quarantine


def caption_pictures(manifest: pd.DataFrame, pictures: dict[str, Picture], params: CaptioningParams) -> pd.DataFrame:
    """The manifest with the columns caption and caption_source."""
    return captioning.caption_manifest(manifest, pictures, params)


def draw_input_sheet(manifest: pd.DataFrame, pictures: dict[str, Picture], ingestion: IngestionParams) -> Image.Image:
    """One overview of all pictures with their captions, the content's other looks included."""
    manifest, pictures = add_content_looks(manifest, pictures, ingestion)
    return draw_sheet(manifest, {key: load_picture(pictures[key]) for key in manifest["picture"]})


def encode_pictures(
    manifest: pd.DataFrame,
    pictures: dict[str, Picture],
    base_model: BaseModelParams,
    ingestion: IngestionParams,
    params: CaptioningParams,
    preservation: PreservationParams,
    content: ConceptParams,
    style: ConceptParams,
    counterparts: CounterpartParams,
    seed: int,
    encoding_cache: str | None,
):
    """The training set: latents and prompt embeddings, computed once by the base's encoders, of the pictures, of the content's
    other looks and captions, and of the prompts to be preserved."""
    # No return annotation: Kedro resolves a node's annotations at start-up, and this one would import torch there.
    from b4m_pipeline.inputs.training_set import encode_training_set

    others = captioning.preserved_prompts(preservation, content, style, counterparts, seed)
    manifest, pictures = add_content_looks(manifest, pictures, ingestion)
    manifest = captioning.add_variants(manifest, params, style.token)
    return encode_training_set(manifest, pictures, base_model, others, encoding_cache)
