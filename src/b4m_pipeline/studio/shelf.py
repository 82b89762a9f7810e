"""The registry as cards: what each version is, what it looks like, and in what two differ."""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from PIL import Image

from b4m_pipeline.common.provenance import flat
from b4m_pipeline.common.whole_files import whole_file
from b4m_pipeline.common.words import file_words
from b4m_pipeline.diffusion.sampling import png_info
from b4m_pipeline.method.adapter import Adapter, example_prompt
from b4m_pipeline.registry.adapters import NAME_OF_KIND, fetch_adapter
from b4m_pipeline.registry.listing import Entry, page_of_adapters, same_base
from b4m_pipeline.studio.asked import CardsRequest

_SHOWN_BY = {
    "content": "samples_content_alone_content",
    "style": "samples_style_alone_style",
    "joined": "samples_halves_joined_composition",
    "make": "samples_made_composition",
}
"""Which picture of an evaluation shows a kind: a row of squares."""
_SCANNED = 100
"""Newest versions that are looked through for words that are in no name."""
_NO_DIFFERENCE = ("registry_uri", "recipe_code", "recipe_libraries", "frame_directions", "frame_config", "params", "pictures")


class ShelfError(ValueError):
    """A version that the registry has not."""


@dataclass(frozen=True)
class Card:
    """A version, for the page. licences: of the pictures that it was trained on, "" where its card does not say; parents:
    versions that it was made of; ours: whether it is of the base model that the studio draws with."""

    name: str
    version: str
    uri: str
    kind: str
    concept: str
    content: str
    style: str
    aliases: list[str]
    frame: str
    base: str
    ours: bool
    created: str
    licences: str
    parents: list[str]
    token: str
    noun: str
    prompt: str


def cards(base: str, asked: CardsRequest) -> tuple[list[Card], str | None]:
    """Adapters of the registry, newest first, and where the next page begins, None if there is none. base: the studio's base
    model, see `base_model_id`.

    Words are looked for in registered names. If no name has them all, the newest versions are looked through for words
    elsewhere on their cards: base, licence, alias."""
    words = asked.words.lower().split()
    concepts = {f"{kind}_name": name for kind, name in (("content", asked.content), ("style", asked.style)) if name}
    of_base = base if asked.ours else None
    ask = partial(page_of_adapters, kind=asked.kind, frame=asked.frame, concepts=concepts, base=of_base)
    page = ask(words=words, older=asked.older, limit=asked.limit, after=asked.after)
    found = [_card(entry, base) for entry in page.entries]
    if words and not found and not asked.after:
        newest = ask(limit=_SCANNED).entries
        shown = [_card(entry, base) for entry in newest if asked.older or entry.newest or entry.aliases]
        found = [card for card in shown if all(word in _text(card) for word in words)]
    return found, page.after


def _text(card: Card) -> str:
    return f"{card.name} {card.concept} {card.base} {card.licences} {' '.join(card.aliases)}".lower()


def _card(entry: Entry, base: str) -> Card:
    about = entry.about
    concept = about.get("name", "")
    return Card(
        name=entry.name,
        version=entry.version,
        uri=f"models:/{entry.name}/{entry.version}",
        kind=entry.kind,
        concept=entry.concept,
        content=about.get("content_name") or (concept if entry.kind == "content" else ""),
        style=about.get("style_name") or (concept if entry.kind == "style" else ""),
        aliases=list(entry.aliases),
        frame=entry.frame,
        base=entry.base,
        ours=same_base(entry.base, base),
        created=entry.created,
        licences=licences(entry.description),
        parents=json.loads(about.get("parents", "[]")),
        token=about.get("token", ""),
        noun=about.get("noun", ""),
        prompt=example_prompt(about) or "",
    )


def licences(card: str) -> str:
    """Of the concept's own pictures, from a model card (see registry/model_card.py): "Apache-2.0 (2), MIT (2)"."""
    rows = re.findall(r"^\| (content|style) \| \d+ \| ([^|]*) \|", card, re.MULTILINE)
    return "; ".join(dict.fromkeys(licence.strip() for _, licence in rows if licence.strip()))


def picture(name: str, version: str, folder: Path) -> Image.Image | None:
    """What a version looks like: what the page had drawn for its card, kept in `folder`, else the first picture of the
    evaluation in the run that made it. None if there is neither. Raises ShelfError if the registry has no such version."""
    if (kept := card_file(name, version, folder)).is_file():
        return Image.open(kept)
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    try:
        found = client.get_model_version(name, version)
    except MlflowException as error:
        raise ShelfError(f"The registry has no version {version} of {name}") from error
    shown = f"pictures/{_SHOWN_BY.get(NAME_OF_KIND.get(found.tags.get('kind', ''), ''), '')}.png"
    listed = [file.path for file in client.list_artifacts(found.run_id, "pictures")] if found.run_id else []
    if shown not in listed:
        return None
    row = mlflow.artifacts.load_image(f"runs:/{found.run_id}/{shown}")
    return keep_card(row.crop((0, 0, row.height, row.height)), name, version, folder)


def card_file(name: str, version: str, folder: Path) -> Path:
    return folder / "cards" / f"{file_words(name)}-{int(version)}.png"


def keep_card(image: Image.Image, name: str, version: str, folder: Path) -> Image.Image:
    """Make a picture a version's card."""
    file = card_file(name, version, folder)
    with whole_file(file) as own:
        image.save(own, format="PNG", pnginfo=png_info(image))
    return image


def differences(first: str, second: str) -> list[tuple[str, str, str]]:
    """In what two versions differ, "models:/NAME/VERSION" each: what they are, parameters, their evaluations' figures; a row
    of name and both values. Raises RegistrationError or AdapterError."""
    own = [_facts(fetch_adapter(uri)) | _figures(uri) for uri in (first, second)]
    names = dict.fromkeys([*own[0], *own[1]])
    rows = [(name, own[0].get(name, ""), own[1].get(name, "")) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _facts(adapter: Adapter) -> dict[str, str]:
    about = adapter.metadata
    plain = {key: value for key, value in about.items() if key not in _NO_DIFFERENCE}
    settings = {key: _plain(value) for key, value in flat(json.loads(about["params"])).items()}
    pictures = {
        f"pictures of {role.replace('_', ' ')}": f"{of['number']} ({_plain(list(of['licences']))})"
        for role, of in json.loads(about.get("pictures", "{}")).items()
    }
    return {key.replace("_", " "): value for key, value in plain.items()} | {"rank": str(adapter.rank)} | pictures | settings


def _figures(uri: str) -> dict[str, str]:
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    found = mlflow.MlflowClient().get_model_version(name, version)
    metrics = mlflow.get_run(found.run_id).data.metrics if found.run_id else {}
    return {key: f"{value:.3f}" for key, value in sorted(metrics.items()) if key.startswith("evaluation.")}


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
