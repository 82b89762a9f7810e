"""What a file says of itself in its header, in the words of other programs.

Keys `modelspec.*`: Stability.AI's model spec, version 1.0.0. Keys `ss_*`: kohya's scripts, which A1111, Forge and managers of
LoRAs read.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from b4m_pipeline.diffusion.architectures import ARCHITECTURE, PREDICTION, base_version
from b4m_pipeline.method.adapter import CREATED, URI_KEY, Adapter, example_prompt
from b4m_pipeline.registry.model_card import summary

HASH_KEY = "modelspec.hash_sha256"
THUMBNAIL_SIDE, THUMBNAIL_BYTES = 256, 24_000
"""Pixels a side, as the spec advises, and the most bytes of the JPEG."""
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_PLAIN = ("content_name", "content_token", "style_name", "style_token", "token", "noun", "style_noun", "example_prompt")


class ExportError(ValueError):
    """An adapter that cannot be written for other programs."""


@dataclass(frozen=True)
class About:
    """What the user, or an evaluation, adds to what an adapter says of itself."""

    author: str | None = None
    license: str | None = None
    thumbnail: Image.Image | None = None


def file_metadata(adapter: Adapter, about: About) -> dict[str, str]:
    """The header of an exported file, but for its hash. Raises ExportError if the adapter does not say what it is for."""
    own = adapter.metadata
    if ARCHITECTURE not in own:
        raise ExportError(f"{own['name']} does not say what its base model is, as older adapters: train or merge it again")
    return _kohya(adapter) | _modelspec(own, about) | {key: own[key] for key in _PLAIN if own.get(key)} | _ours(own)


def _ours(own: dict[str, str]) -> dict[str, str]:
    return {"b4m": json.dumps({key: value for key, value in own.items() if key != URI_KEY}, sort_keys=True)}


def _kohya(adapter: Adapter) -> dict[str, str]:
    own = adapter.metadata
    version = base_version(own[ARCHITECTURE])
    fields = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(float(adapter.lora_config["lora_alpha"])),
        "ss_output_name": own["name"],
        "ss_v2": str((version or "").startswith("sd_v2")),  # all that tells A1111 SD 2 from SD 1
    }
    return fields | ({"ss_base_model_version": version} if version else {})


def _modelspec(own: dict[str, str], about: About) -> dict[str, str]:
    words = [own[key] for key in ("content_token", "style_token", "token") if own.get(key)]
    trained_at = own.get("resolution")
    fields = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{own[ARCHITECTURE]}/lora",
        "implementation": "diffusers",  # whose names the layers have
        "title": own["name"],
        "description": summary(own),
        "author": about.author,
        "date": own.get(CREATED),
        "license": about.license,
        "resolution": f"{trained_at}x{trained_at}" if trained_at else None,
        "prediction_type": _PREDICTIONS.get(own.get(PREDICTION, "")),
        "trigger_phrase": example_prompt(own),
        "usage_hint": f"Words: {', '.join(words)}" if words else None,
        "merged_from": f"{own['content_name']}, {own['style_name']}" if own["kind"] == "merged" else None,
        "thumbnail": data_url(about.thumbnail) if about.thumbnail else None,
    }
    return {f"modelspec.{key}": value for key, value in fields.items() if value}


def read_thumbnail(path: Path) -> Image.Image:
    """A picture for `About`. Raises ExportError for a file that is none."""
    if not path.is_file():  # nor a pipe, which would be waited for
        raise ExportError(f"{path} is no file")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ExportError(f"{path} is no picture: {error}") from error


def data_url(image: Image.Image) -> str:
    """The middle square of an image as a small JPEG, at most `THUMBNAIL_BYTES` long before base64."""
    side = min(THUMBNAIL_SIDE, *image.size)
    small = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    for quality in (90, 75, 60, 40, 20, 5):
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= THUMBNAIL_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
