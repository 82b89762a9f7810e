"""Pictures that a base model draws, in folders that are kept: for the same model, prompts, seeds and settings only once.

A finished folder is the user's: what is deleted from it stays deleted, and what is added is read like any other picture.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.progress import progress
from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.whole_files import whole_file
from b4m_pipeline.diffusion.families import encoder_id, load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import ImageRequest, draw, put_on
from b4m_pipeline.method.adapter import Adapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing(ImageRequest):
    """An image to draw. text: what is written into the text file beside it."""

    text: str


@dataclass(frozen=True)
class Starts:
    """What drawings begin with instead of noise alone. pictures: RGB, one for each drawing and of its size; strength: for what
    share of the denoising steps they are drawn over."""

    pictures: Sequence[Image.Image]
    strength: float

    def digest(self) -> str:
        """Of the pixels and the strength."""
        return digest_of([sha256(picture.tobytes()).hexdigest() for picture in self.pictures], self.strength)


def drawing_folder(
    root: str, name: str, drawings: Sequence[Drawing], base_model: BaseModelParams, settings: dict[str, Any], *made_from: Any
) -> Path:
    """Where these drawings are kept: a folder in `root` that is named after `name` and a digest of all that decides them.
    settings: arguments of `draw`; made_from: what else decides them, such as an adapter's weights. Raises BaseModelError or
    HubError if there is no such base model."""
    decisive = {key: value for key, value in settings.items() if key != "batch_size"}
    digest = digest_of([asdict(drawing) for drawing in drawings], encoder_id(base_model), decisive, *made_from)
    return Path(root) / f"{name}-{digest}"


def draw_folders(
    folders: Mapping[Path, Sequence[Drawing]],
    base_model: BaseModelParams,
    settings: dict[str, Any],
    adapter: Adapter | None = None,
    starts: Starts | None = None,
) -> list[Path]:
    """Draw every folder that is not there yet: NNN.png, and NNN.txt with its text. Returns those that were drawn now.

    Until all of its pictures are there, a folder is called NAME.unfinished. A run that was killed goes on from there. The
    model is loaded only if something is missing. adapter: what the model draws with, if not by itself; starts: what the
    drawings of each folder begin with."""
    wanted = [folder for folder in folders if not folder.exists()]
    missing = [
        (_unfinished(folder) / f"{index:03d}.png", drawing, index)
        for folder in wanted
        for index, drawing in enumerate(folders[folder])
        if not (_unfinished(folder) / f"{index:03d}.png").exists()
    ]
    if missing:
        family, device = load_family(base_model), pick_device()
        if starts:
            latents = family.encode_pictures([starts.pictures[index] for _, _, index in missing], device)
            settings = settings | {"starts": [mean for mean, _ in latents], "strength": starts.strength}
        pipeline = family.load_pipeline(device)
        if adapter is not None:
            put_on(pipeline, adapter)
        drawn = draw(pipeline, [drawing for _, drawing, _ in missing], **settings)
        shown = progress(drawn, "drawing pictures", len(missing))
        for (file, drawing, _), (_, image) in zip(missing, shown, strict=True):
            save_drawing(image, drawing.text, file)
    for folder in wanted:
        if folder.exists():  # another run was faster
            shutil.rmtree(_unfinished(folder), ignore_errors=True)
        else:
            _unfinished(folder).rename(folder)
    return wanted


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.unfinished")


def save_drawing(image: Image.Image, text: str, file: Path) -> None:
    """Text first, then the picture under its name in one move: a picture that is there is whole and has its text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".txt").write_text(text, encoding="utf-8")
    with whole_file(file, sole=True) as own:
        image.save(own, format="PNG")
