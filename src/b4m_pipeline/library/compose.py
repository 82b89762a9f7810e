"""Two LoRAs of one base model put together, in one way or in several that are drawn side by side."""

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kedro.io import DatasetError
from PIL import Image

from b4m_pipeline.common.config import shown
from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.progress import progress
from b4m_pipeline.common.provenance import code_version, digest_of, file_digest
from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.datasets.training_set import TrainingSetDataset
from b4m_pipeline.diffusion.architectures import architecture_of
from b4m_pipeline.diffusion.families import base_model_id, load_family
from b4m_pipeline.diffusion.lora_files import find_lora, is_ours, read_lora, require_layers
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.diffusion.sampling import ImageRequest, base_of, draw, put_on, require_base, settings_of
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import (
    CREATED,
    LONGEST_ADAPTER_NAME,
    RECIPE_KEY,
    URI_KEY,
    WEIGHTS_NAME,
    Adapter,
    example_prompt,
)
from b4m_pipeline.method.combine import join_halves, scale_halves
from b4m_pipeline.method.merge import merge, weighted
from b4m_pipeline.method.params import Side
from b4m_pipeline.method.whole import require_whole
from b4m_pipeline.registry.adapters import fetch_adapter
from b4m_pipeline.training.params import TrainParams
from b4m_pipeline.training.setup import require_encoded_by
from b4m_pipeline.training.zip_lora import zip_lora

logger = logging.getLogger(__name__)

_OF_METHOD = {"ties": ("rank", "density"), "dare": ("rank", "density"), "svd": ("rank",), "np": ("np_strength",)}


class ComposeError(ValueError):
    """Two LoRAs that cannot be put together as it is asked for."""


@dataclass(frozen=True)
class Part:
    """One of the two. source: where it was had; origin: what is kept of that, a version in the registry or a file's digest."""

    adapter: Adapter
    source: str
    origin: str

    def word(self, kind: str) -> str | None:
        """Its token as a content or a style."""
        return self.adapter.metadata.get(f"{kind}_token") or self.adapter.metadata.get("token")


def fetch_part(source: str, base_model: BaseModelParams) -> Part:
    """A LoRA of the registry, of a folder or of a file, whoever wrote it. Raises RegistrationError or AdapterError."""
    if source.startswith("models:/"):
        adapter, origin = fetch_adapter(source), ""
    else:
        file = find_lora(source)
        ours, source, origin = is_ours(file), str(file), f"{file.name}, sha256 {file_digest(file)[:16]}"
        folder = file.parent if file.name == WEIGHTS_NAME else file
        adapter = fetch_adapter(str(folder)) if ours else read_lora(file, base_model)
        if not ours:
            require_whole(adapter, source)
    return Part(adapter, source, adapter.metadata.get(URI_KEY, origin))


def compose(
    params: ComposeParams, base_model: BaseModelParams, side: Side, train: TrainParams, seed: int
) -> tuple[Part, Part, dict[str, Adapter]]:
    """Content, style, and the two put together in each of `params.methods`.

    side: whose side is content's, where its half does not say; train: what zip is trained with besides its own parameters.
    Raises ComposeError, AdapterError, RegistrationError, FrameMismatchError, GenerationError or TrainingSetError.
    """
    parts = content, style = fetch_part(params.content, base_model), fetch_part(params.style, base_model)
    made: dict[str, Adapter] = dict.fromkeys(params.methods, content.adapter)  # in their order
    if "halves" in made:
        joined = join_halves(content.adapter, style.adapter, cast(Side, content.adapter.metadata.get("half", side)))
        made["halves"] = _weigh_halves(joined, params)
    if params.methods == ["halves"]:
        return content, style, made
    about = _about(content, style, base_model, require_one_base(content, style, base_model))
    if len(made) > 1:
        prompts_of(params, about)
    pictures = _training_set(params, parts, base_model) if "zip" in made else None
    for method in params.methods:
        if method == "halves":
            continue
        logger.info("%s is merged by %s", about["name"], method)
        if method == "zip":
            assert pictures is not None
            scaled = [weighted(part.adapter, weight) for part, weight in zip(parts, _weights(params), strict=True)]
            merged = zip_lora(scaled[0], scaled[1], pictures, base_model, train, params.zip, seed)
        else:
            merged = merge(content.adapter, style.adapter, method, params.merge, seed)
        settings = settings_of_method(method, params)
        own = {"method": method, "params": json.dumps({"merge": settings, "seed": seed}, sort_keys=True)}
        own |= {key: str(settings[key]) for key in ("content_weight", "style_weight")}
        if params.prompts and example_prompt(about) is None:
            own["example_prompt"] = " ".join(params.prompts[0].split())
        made[method] = dataclasses.replace(merged, metadata=about | own)
    return content, style, made


def _weights(params: ComposeParams) -> tuple[float, float]:
    return params.merge.content_weight, params.merge.style_weight


def _weigh_halves(joined: Adapter, params: ComposeParams) -> Adapter:
    if (weights := _weights(params)) == (1.0, 1.0):
        return joined
    scaled = scale_halves(joined, *weights)
    scaled.metadata |= {"content_weight": str(weights[0]), "style_weight": str(weights[1])}
    scaled.metadata[RECIPE_KEY] = digest_of(joined.metadata[RECIPE_KEY], weights)
    return scaled


def settings_of_method(method: str, params: ComposeParams) -> dict[str, Any]:
    """What decides the result of a method besides the two LoRAs."""
    own = {"method": method, "content_weight": params.merge.content_weight, "style_weight": params.merge.style_weight}
    if method == "zip":
        return own | params.zip.model_dump(exclude={"training_set"})
    return own | params.merge.model_dump(include=set(_OF_METHOD.get(method, ())), exclude_none=True)


def require_one_base(content: Part, style: Part, base_model: BaseModelParams) -> str:
    """The run's base model (see `base_model_id`). Raises ComposeError if the two are LoRAs of different ones, GenerationError
    if they are of another than the run's, AdapterError if their layers are not its layers."""
    bases = [base_of(part.adapter) for part in (content, style)]
    if all(bases) and len({str(base).rsplit("@", 1)[-1] for base in bases}) > 1:
        raise ComposeError(
            f"{content.source} is a LoRA of the base model {bases[0]}, {style.source} one of {bases[1]}: only LoRAs of one "
            "base model can be put together"
        )
    base, denoiser = base_model_id(base_model), load_family(base_model).empty_denoiser()
    for part, known in zip((content, style), bases, strict=True):
        if known:
            require_base(part.adapter, base)
        require_layers(part.adapter, denoiser, base_model.path, part.source)
    return base


def _training_set(params: ComposeParams, parts: tuple[Part, Part], base_model: BaseModelParams) -> TrainingSet:
    """The pictures that zip learns on. Raises ComposeError if there are none, TrainingSetError if they are others'."""
    path = params.zip.training_set
    if not Path(path).is_file():
        raise ComposeError(
            f"compose.methods: zip learns on the pictures of content and style, and there is no training set at {path}: run "
            "the pipeline ingestion with content.path and style.path first, or leave zip out"
        )
    try:
        pictures = TrainingSetDataset(filepath=path).load()
    except DatasetError as error:
        raise ComposeError(f"compose.zip.training_set: {error}") from error
    require_encoded_by(base_model, pictures)
    for kind, part in zip(("content", "style"), parts, strict=True):
        pictures.rows(kind)
        if part.adapter.metadata.get("kind") == kind:
            pictures.require(kind, part.adapter.metadata["name"], part.adapter.metadata["token"])
    shown = pictures.table[pictures.table["role"].isin(["content", "style"])]["concept"].unique()
    logger.info("zip learns on the ingested pictures of %s", " and ".join(shown))
    return pictures


def _about(content: Part, style: Part, base_model: BaseModelParams, base: str) -> dict[str, str]:
    """Metadata of a merged adapter, apart from what the method adds. It has no frame; what is known of its base stands where a
    frame would say it."""
    first, second = content.adapter.metadata, style.adapter.metadata
    if len((name := f"{first['name']}-{second['name']}").encode()) > LONGEST_ADAPTER_NAME:
        raise ComposeError(
            f"{shown(name)} has more than {LONGEST_ADAPTER_NAME} bytes, too many for a name: rename one of the two files"
        )
    about = {
        "kind": "merged",
        "name": name,
        "base_model": base_model.path,
        "resolution": str(base_model.resolution),
        "frame": "none",
        "frame_config": json.dumps({"base_model": base}),
        "data_digest": digest_of(first["data_digest"], second["data_digest"]),
        "code_version": code_version(),
        "parents": json.dumps([content.origin, style.origin]),
        "content_name": first["name"],
        "style_name": second["name"],
    }
    family = load_family(base_model)
    about |= base_model.details() | family.metadata() | architecture_of(family)
    if dates := [part[CREATED] for part in (first, second) if CREATED in part]:
        about[CREATED] = max(dates)
    words = {"content_token": content.word("content"), "style_token": style.word("style")}
    words |= {"noun": first.get("noun"), "style_noun": second.get("style_noun") or second.get("noun")}
    known = {key: word for key, word in words.items() if word}
    return about | (known if {"content_token", "style_token"} <= known.keys() else {})


def prompts_of(params: ComposeParams, about: dict[str, str]) -> list[str]:
    """What the sheet shows. Raises ComposeError if nobody says so."""
    own = example_prompt(about)
    if not params.prompts and own is None:
        raise ComposeError(
            f"compose.prompts: it is not known by which words {about['content_name']} and {about['style_name']} are asked for: "
            "name the prompts that the sheet is to show"
        )
    return params.prompts or [str(own)]


def draw_side_by_side(
    content: Part,
    style: Part,
    made: dict[str, Adapter],
    params: ComposeParams,
    base_model: BaseModelParams,
    generate: GenerateParams,
    seed: int,
) -> Image.Image:
    """A sheet with a row for the content's own LoRA, one for the style's, and one for each way: the same prompts and seeds in
    all, drawn with the settings of `generate`."""
    prompts = prompts_of(params, next(own.metadata for own in made.values() if own.metadata["kind"] == "merged"))
    asked = [ImageRequest(prompt, seed + index) for prompt in prompts for index in range(generate.images_per_prompt)]
    alone = [
        (part.adapter.metadata["name"], f"{kind} alone", part.adapter)
        for kind, part in (("content", content), ("style", style))
    ]
    ways = [(method, _said(settings_of_method(method, params)), adapter) for method, adapter in made.items()]
    pipeline = load_family(base_model).load_pipeline(pick_device(generate.device))
    rows = []
    shown = [*alone, *ways]
    for place, (title, note, adapter) in enumerate(progress(shown, "drawing rows of the sheet", len(shown))):
        pipeline.unload_lora_weights()
        put_on(pipeline, adapter)
        drawn = draw(pipeline, asked, **settings_of(generate, base_model.resolution))
        rows.append(Row(title, [image for _, image in drawn], note, strong=place > 1))
    name = f"{content.adapter.metadata['name']} and {style.adapter.metadata['name']}"
    return paint_grid(rows, title=name, headings=[request.prompt for request in asked])


def _said(settings: dict[str, Any]) -> str:
    plain = {"content_weight": 1.0, "style_weight": 1.0, "method": settings["method"]}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if plain.get(name) != value)
