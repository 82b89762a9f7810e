"""From folders of pictures to the table that is trained on: one preparation for ingestion, library and benchmark."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from PIL import Image

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.captioners import tag_rows
from b4m_pipeline.inputs.captions import LOOK, VARIANT, add_variants, caption_of
from b4m_pipeline.inputs.folders import Folder, Picture, check_folders, load_picture
from b4m_pipeline.inputs.looks import UnknownLookError, add_content_looks
from b4m_pipeline.inputs.params import CaptioningParams, IngestionParams
from b4m_pipeline.inputs.vision_language import describe_rows

logger = logging.getLogger(__name__)


@dataclass
class Prepared:
    """manifest: a row for each image and caption that is trained on; pictures: its images by key, the checked squares first,
    then the content's looks; quarantine: what was left out and why."""

    manifest: pd.DataFrame = field(repr=False)
    pictures: Mapping[str, Picture] = field(repr=False)
    quarantine: pd.DataFrame = field(repr=False)

    def references(self, role: str) -> list[Image.Image]:
        """The role's pictures themselves, RGB."""
        return references(self.manifest, self.pictures, role)


def prepare(
    folders: Iterable[Folder],
    resolution: int,
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    style_token: str,
    base_model: BaseModelParams | None = None,
) -> Prepared:
    """Check all folders, caption their pictures, add the content's looks and the further captions. base_model: what draws
    looks. Raises as `check_folders` and `caption_pictures` do."""
    checked = check_folders(folders, resolution, ingestion)
    manifest, pictures = caption_pictures(checked.manifest, checked.squares, ingestion, captioning, style_token, base_model)
    return Prepared(manifest, pictures, checked.quarantine)


def caption_pictures(
    checked_manifest: pd.DataFrame,
    pictures: dict[str, Image.Image],
    ingestion: IngestionParams,
    captioning: CaptioningParams,
    style_token: str,
    base_model: BaseModelParams | None = None,
) -> tuple[pd.DataFrame, dict[str, Image.Image]]:
    """The checked manifest with captions, and with rows for the content's looks and for further captions; all of its images by
    key. Raises CaptioningError if a model is not there, UnknownLookError."""
    captioned = caption_manifest(checked_manifest, pictures, captioning, style_token)
    manifest, looks = add_content_looks(captioned, pictures, ingestion)
    if ingestion.drawn_looks:
        if base_model is None:
            raise UnknownLookError("ingestion.drawn_looks: here no base model draws any: set it to null")
        from b4m_pipeline.inputs.drawn_looks import add_drawn_looks

        drawn_rows, drawn = add_drawn_looks(captioned, pictures, ingestion, base_model)
        manifest = pd.concat([manifest, drawn_rows.iloc[len(captioned) :]], ignore_index=True)
        looks |= drawn
    return add_variants(manifest, captioning, style_token), {**pictures, **looks}


def own_pictures(manifest: pd.DataFrame, role: str) -> pd.DataFrame:
    """The manifest's rows of a role's pictures themselves: neither looks nor further captions."""
    return manifest[(manifest["role"] == role) & ~manifest["caption_source"].isin([LOOK, VARIANT])]


def references(manifest: pd.DataFrame, pictures: Mapping[str, Picture], role: str) -> list[Image.Image]:
    """A role's pictures themselves, RGB."""
    return [load_picture(pictures[key]) for key in own_pictures(manifest, role)["picture"]]


def caption_manifest(
    manifest: pd.DataFrame, pictures: Mapping[str, Picture], params: CaptioningParams, style_token: str
) -> pd.DataFrame:
    """Give every picture a caption: the columns `caption` and `caption_source` take the place of `sidecar`.

    A model is loaded only if some picture needs it, and released before the next one is. Pictures of content and style
    together (role union) are captioned by sidecar or template. Raises CaptioningError if a model is not there.
    """
    texts = {row.picture: (row.sidecar, "sidecar") for row in manifest.itertuples() if row.sidecar}

    def missing() -> pd.DataFrame:
        return manifest[~manifest.picture.isin(texts) & (manifest.role != "union")]

    if params.vision_language_model and len(missing()):
        described = describe_rows(missing(), pictures, params)
        texts |= {key: (text, "vision_language_model") for key, text in described.items()}
    if params.clip and len(missing()):
        texts |= {key: (word, "tags") for key, word in tag_rows(missing(), pictures, params).items()}

    captions, sources = [], []
    for row in manifest.itertuples():
        text, source = texts.get(row.picture, ("", "template"))
        captions.append(caption_of(row.role, row.token, row.noun, text, style_token, params, source))
        sources.append(source)
    counts = pd.Series(sources).value_counts()
    logger.debug("Captions by %s", ", ".join(f"{source}: {count}" for source, count in counts.items()))
    return manifest.drop(columns="sidecar").assign(caption=captions, caption_source=sources)
