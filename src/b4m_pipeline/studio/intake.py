"""Pictures that are to be trained on: what is understood of each before anything starts, uploads, captions."""

import io
import os
import tempfile
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from b4m_pipeline.common.whole_files import whole_file
from b4m_pipeline.diffusion.sampling import png_info
from b4m_pipeline.inputs.folders import Checked, check_folders, list_folders
from b4m_pipeline.inputs.listing import is_mask
from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams
from b4m_pipeline.inputs.prepare import caption_manifest
from b4m_pipeline.inputs.squares import UnusablePictureError, read_square
from b4m_pipeline.studio.asked import CaptionRequest, ConceptRequest, PairRequest
from b4m_pipeline.studio.places import MOST_PICTURES, OWN, Places, count_pictures, is_picture, plain_file

MOST_BYTES = 100_000_000
"""Of an uploaded file."""
_KEPT = 4
_WRITTEN_BYTES = 60_000


class IntakeError(ValueError):
    """Pictures that the page cannot take."""


@dataclass
class Inspection:
    """What a run would be given. rows: see `inspect`."""

    rows: list[dict[str, Any]]
    left_out: list[dict[str, str]]
    warnings: list[str]
    squares: dict[str, Image.Image] = field(repr=False)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Intake:
    """Looks at folders as ingestion does."""

    def __init__(self, places: Places, parameters: dict[str, Any]):
        self.places, self.parameters = places, parameters
        self._seen: OrderedDict[str, Inspection] = OrderedDict()

    def concept(self, kind: str, given: ConceptRequest) -> ConceptParams:
        """The parameters of a content or a style, as the run will have them. Raises PlacesError or IntakeError."""
        folder = self.places.folder(given.path)
        pictures = count_pictures(folder)
        if pictures > MOST_PICTURES:
            raise IntakeError(
                f"{given.path} holds {pictures} pictures: a concept needs a dozen, and the studio takes {MOST_PICTURES} at "
                "most. Choose some, or train on all of them by `kedro run`"
            )
        default = self.parameters[kind]
        own = {"token": default.token, "noun": default.noun} | given.given()
        return ConceptParams(**own | {"path": self.places.name_of(folder)})

    def inspect(self, pair: PairRequest) -> Inspection:
        """Check, cut and caption both folders. A row for each picture: kind, key, file, width, height, caption, source,
        warnings, masked. Raises PicturesError, PlacesError, IntakeError or CaptioningError."""
        concepts = (self.concept(kind, getattr(pair, kind)) for kind in ("content", "style"))
        content, style = (each.model_copy(update={"path": str(self.places.folder(each.path))}) for each in concepts)
        folders = list_folders(content, style, CounterpartParams(contents=[], styles=[]))
        p = self.parameters
        checked = check_folders(folders, p["base_model"].resolution, p["ingestion"])
        found = self._found(checked, style.token)
        self._seen[found.id] = found
        while len(self._seen) > _KEPT:
            self._seen.popitem(last=False)
        return found

    def _found(self, checked: Checked, style_token: str) -> Inspection:
        captioning = self.parameters["captioning"]
        warnings = []
        if captioning.vision_language_model and not checked.manifest["sidecar"].all():
            warnings.append(
                f"Captions of pictures without words beside them will be written by {captioning.vision_language_model} when "
                "the run starts; what stands here is the plain template"
            )
            captioning = captioning.model_copy(update={"vision_language_model": None, "clip": None})
        captioned = caption_manifest(checked.manifest, checked.squares, captioning, style_token)
        for kind, number in captioned["role"].value_counts().items():
            if number < 3:
                warnings.append(f"The {kind} has {number} pictures: four or more teach what they have in common")
        rows = [self._row(row, checked.squares[row.picture]) for row in captioned.itertuples()]
        left_out = checked.quarantine.to_dict("records")
        return Inspection(rows, left_out, warnings, checked.squares)

    def _row(self, row: Any, square: Image.Image) -> dict[str, Any]:
        resolution, said = self.parameters["base_model"].resolution, []
        if row.near_duplicate_of and not pd.isna(row.near_duplicate_of):
            said.append(f"nearly the same as {str(row.near_duplicate_of).rsplit('/', 1)[-1]}")
        if min(row.width, row.height) < resolution:
            said.append(f"smaller than the {resolution} pixels it is trained with: enlarged")
        if max(row.width, row.height) > 1.25 * min(row.width, row.height) and not self.parameters["ingestion"].buckets:
            how = "its sides are cut off" if self.parameters["ingestion"].crop == "center" else "it is padded"
            said.append(f"no square: {how}")
        return {
            "kind": row.role, "key": row.picture, "file": row.file, "width": int(row.width), "height": int(row.height),
            "caption": row.caption, "source": row.caption_source.replace("_", " "), "warnings": said,
            "masked": square.mode == "RGBA",
        }  # fmt: skip

    def square(self, id: str, number: int) -> Image.Image:
        """A picture as it will be trained on, what its mask leaves out paler. Raises IntakeError."""
        found = self._seen.get(id)
        if found is None or not 0 <= number < len(found.rows):
            raise IntakeError("These pictures are not kept any more: look at the folders again")
        square = found.squares[found.rows[number]["key"]]
        if square.mode != "RGBA":
            return square
        veil = Image.blend(square.convert("RGB"), Image.new("RGB", square.size, "white"), 0.7)
        return Image.composite(square.convert("RGB"), veil, square.getchannel("A"))

    def write_caption(self, given: CaptionRequest) -> None:
        """Put the words beside a picture, as NAME.txt, or take them away. Raises PlacesError or IntakeError."""
        folder = self.places.folder(given.folder)
        picture = Path(os.path.realpath(folder / given.file))
        if not picture.is_relative_to(folder) or not picture.is_file() or not is_picture(picture.name):
            raise IntakeError(f"There is no picture {given.file} in {given.folder}")
        text, file = " ".join(given.text.split()), picture.with_suffix(".txt")
        if file.is_symlink():
            raise IntakeError(f"{file.name} is a link: it is not written through")
        if text:
            _write(file, text.encode())
        else:
            file.unlink(missing_ok=True)

    def add(self, name: str, file: str, data: bytes) -> dict[str, str]:
        """Put an uploaded file into the folder `name` of own pictures, if ingestion could use it. Another file of its name
        stays as it is, and is an error. Returns where it lies. Raises PlacesError, IntakeError or, with the reason,
        UnusablePictureError."""
        folder, file = self._own(name), plain_file(file)
        if len(data) > MOST_BYTES:
            raise IntakeError(f"{file} has {len(data) / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} are taken")
        if file.lower().endswith(".txt"):
            self._require_text(file, data)
        else:
            self._require_picture(file, data)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / file).exists():
            if (folder / file).read_bytes() != data:
                raise IntakeError(f"{name} has another {file} already: rename yours, or give the concept another name")
        elif count_pictures(folder) >= MOST_PICTURES:
            raise IntakeError(f"{name} holds {MOST_PICTURES} pictures, the most that the studio takes")
        else:
            _write(folder / file, data)
        return {"folder": self.places.name_of(Path(os.path.realpath(folder))), "file": file}

    def _own(self, name: str) -> Path:
        if not name or len(name) > 60 or not all(letter.isalnum() or letter in "-_" for letter in name):
            raise IntakeError(f"The concept's name must be letters, digits, '-' or '_', got {name!r}")
        folder = self.places.project / OWN / name
        if folder.is_symlink():
            raise IntakeError(f"{name} is a link to another folder: use another name")
        return folder

    def _require_text(self, file: str, data: bytes) -> None:
        try:
            text = data[: _WRITTEN_BYTES + 1].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise IntakeError(f"{file} is not UTF-8 text") from error
        if len(data) > _WRITTEN_BYTES or "\0" in text:
            raise IntakeError(f"{file} is no caption")

    def _require_picture(self, file: str, data: bytes) -> None:
        p, mask = self.parameters["ingestion"], is_mask(file)
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / f"picture{Path(file).suffix}"
            own.write_bytes(data)
            background = (0, 0, 0) if mask else p.background
            try:
                read_square(own, self.parameters["base_model"].resolution, background, p.crop, p.max_pixels, p.buckets)
            except UnusablePictureError as error:
                raise UnusablePictureError(f"{file} is left out: {error}") from error


def _write(file: Path, data: bytes) -> None:
    with whole_file(file) as own:
        own.write_bytes(data)


def png(image: Image.Image) -> bytes:
    """A picture as a file, with what it was made by."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=png_info(image))
    return buffer.getvalue()
