"""Look-up of adapters by what they are of, in a registry of any size.

The store narrows a search down and gives it in pages; what its filters cannot say is looked at here. Aliases are asked for many
names at once. So a listing costs what it shows, not what the registry holds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from b4m_pipeline.registry.adapters import NAME_OF_KIND

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel
    from rich.table import Table

_PAGE = 1000
"""Versions that are asked for at once."""
_NAMES = 3000
"""Characters of names that are asked for at once: they stand in an address, which proxies bound to a few thousand."""
_BY_NAME = ["name ASC", "version_number DESC"]
_BY_TIME = ["creation_timestamp DESC", "name ASC", "version_number DESC"]
_KIND_OF_NAME = {name: kind for kind, name in NAME_OF_KIND.items()}


@dataclass(frozen=True)
class Entry:
    """A version of a registered adapter. created: local time to the minute; newest: whether its name has no newer one; about:
    its tags; description: its card."""

    name: str
    version: str
    aliases: tuple[str, ...]
    kind: str
    concept: str
    frame: str
    base: str
    created: str
    newest: bool = True
    about: dict[str, str] = field(default_factory=dict, repr=False)
    description: str = field(default="", repr=False)
    run_id: str = field(default="", repr=False)


@dataclass(frozen=True)
class Page:
    """A part of a listing. after: where the next one begins; None if this is the last."""

    entries: list[Entry]
    after: str | None


def find_adapters(
    kind: str | None = None,
    concept: str | None = None,
    frame: str | None = None,
    base: str | None = None,
    limit: int | None = None,
    client: "MlflowClient | None" = None,
) -> list[Entry]:
    """The registered adapters, by name, newest version first; the first `limit` of them. kind: as in `NAME_OF_KIND`; concept:
    the name of a content or style, of adapters with both either; frame: the fingerprint's beginning; base: a part of the base
    model's name or digest."""
    client = client or _client()

    def wanted(found: Any) -> bool:
        about = found.tags
        return (not concept or concept in _concepts(about)) and (not base or base in _base(about))

    # The store knows no "or": each way to be meant is a search of its own.
    ways = [[_tag(key, concept) for key in ("name", "content_name", "style_name")] if concept else [""]]
    ways += [[_tag(key, base, part=True) for key in ("base_model_id", "base_model")] if base else [""]]
    found: dict[tuple[str, int], Any] = {}
    for way in {_and(*_of_kind(kind, frame), *way) for way in product(*ways)}:
        own = (
            version for version in _search(client, way, _BY_NAME, limit) if _is_ours(version, kind, frame) and wanted(version)
        )
        found |= {(version.name, -int(version.version)): version for version in islice(own, limit)}
    return _entries(client, [found[key] for key in sorted(found)[:limit]])


def page_of_adapters(
    kind: str | None = None,
    frame: str | None = None,
    words: Iterable[str] = (),
    concepts: dict[str, str] | None = None,
    base: str | None = None,
    older: bool = True,
    limit: int = 100,
    after: str | None = None,
    client: "MlflowClient | None" = None,
) -> Page:
    """The registered adapters, newest first, from `after` on; `limit` of them or a few more. words: parts of the registered
    name in small letters; concepts: tags of the concepts, such as content_name; base: see `base_model_id`; older: also versions
    that are neither the newest of their name nor have an alias."""
    client, words = client or _client(), list(words)
    meant = [_tag(key, name) for key, name in (concepts or {}).items()]
    meant += [_like("tags.`base_model_id`", f"%{base.rsplit('@', 1)[-1]}", whole=True)] if base else []
    criterion = _and(*_of_kind(kind, frame), *meant, *(_like("name", word, "ILIKE") for word in words))
    entries: list[Entry] = []
    while True:
        page = client.search_model_versions(criterion, max_results=limit, order_by=_BY_TIME, page_token=after)
        after = page.token or None
        ours = [version for version in page if _is_ours(version, kind, frame) and _has(version.tags, concepts)]
        named = [version for version in ours if all(word in version.name.lower() for word in words)]
        own = [version for version in named if not base or same_base(_base(version.tags), base)]
        entries += (entry for entry in _entries(client, own) if older or entry.newest or entry.aliases)
        if len(entries) >= limit or after is None:
            return Page(entries, after)


def same_base(first: str, second: str) -> bool:
    """Whether two base models (see `base_model_id`) have the same weights: a folder may have another name by now."""
    return first.rsplit("@", 1)[-1] == second.rsplit("@", 1)[-1]


def table(entries: list[Entry]) -> "Table":
    """The entries to be shown on a terminal."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False)
    for heading in ("name", "version", "aliases", "kind", "concept", "frame", "base", "created"):
        drawn.add_column(heading, overflow="fold", justify="right" if heading == "version" else "left")
    for entry in entries:
        row = (entry.name, entry.version, ", ".join(entry.aliases), entry.kind, entry.concept, entry.frame[:8], entry.base)
        drawn.add_row(*row, entry.created)
    return drawn


def models_of(client: "MlflowClient", names: Iterable[str]) -> "dict[str, RegisteredModel]":
    """Registered models with their aliases and newest versions, many in one request."""
    models: dict[str, RegisteredModel] = {}
    waiting = sorted(set(names))
    while waiting:
        size, part = 0, list[str]()
        while waiting and (not part or size + len(waiting[-1]) < _NAMES):
            part.append(waiting.pop())
            size += len(part[-1]) + 3
        listed = ", ".join(f"'{name}'" for name in part)
        found = client.search_registered_models(f"name IN ({listed})", max_results=len(part))
        models |= {model.name: model for model in found}
    return models


def _entries(client: "MlflowClient", versions: list) -> list[Entry]:
    """The versions with their aliases, in their order."""
    models, entries = models_of(client, (version.name for version in versions)), []
    for found in versions:
        if (model := models.get(found.name)) is None:
            continue  # deleted meanwhile
        about, number = found.tags, str(found.version)
        own = tuple(sorted(alias for alias, version in model.aliases.items() if str(version) == number))
        of = (NAME_OF_KIND[about["kind"]], " + ".join(_concepts(about)), about["frame"], _base(about))
        created = datetime.fromtimestamp(found.creation_timestamp / 1000).strftime("%Y-%m-%d %H:%M")
        newest = int(number) >= max((int(latest.version) for latest in model.latest_versions), default=0)
        told = dict(about), found.description or "", found.run_id or ""
        entries.append(Entry(found.name, number, own, *of, created, newest, *told))
    return entries


def _is_ours(version: Any, kind: str | None, frame: str | None) -> bool:
    """Whether a version is an adapter, of this kind and frame."""
    about = version.tags
    if about.get("kind") not in NAME_OF_KIND or "frame" not in about or "'" in version.name:
        return False  # somebody else's model
    return (not kind or NAME_OF_KIND[about["kind"]] == kind) and about["frame"].startswith(frame or "")


def _has(about: dict[str, str], wanted: dict[str, str] | None) -> bool:
    return all(about.get(key) == value for key, value in (wanted or {}).items())


def _concepts(about: dict[str, str]) -> list[str]:
    return [about[key] for key in ("content_name", "style_name") if key in about] or [about.get("name", "")]


def _base(about: dict[str, str]) -> str:
    return about.get("base_model_id") or about.get("base_model", "")


def _of_kind(kind: str | None, frame: str | None) -> list[str]:
    """Every adapter has a frame, and hardly anybody else's model."""
    return [_tag("kind", _KIND_OF_NAME[kind]) if kind else "", _like("tags.`frame`", f"{frame or ''}%", whole=True)]


def _tag(key: str, value: str, part: bool = False) -> str:
    return _like(f"tags.`{key}`", value) if part else _quoted(f"tags.`{key}` = ", value)


def _like(key: str, value: str, comparator: str = "LIKE", whole: bool = False) -> str:
    """A filter that lets through at least what has this part: % and _ in a value stand for anything, too."""
    return _quoted(f"{key} {comparator} ", value if whole else f"%{value}%")


def _quoted(start: str, value: str) -> str:
    """Nothing, that is everything, for a value that MLflow's filters cannot express in the same way in all stores."""
    return "" if set(value) & set("'\"\\`") else f"{start}'{value}'"


def _and(*filters: str) -> str:
    return " and ".join(sorted(own for own in filters if own))


def _search(client: "MlflowClient", criterion: str, order: list[str], limit: int | None) -> Iterator[Any]:
    """Versions, asked for page by page as they are needed."""
    token = None
    while True:
        page = client.search_model_versions(criterion, max_results=min(limit or _PAGE, _PAGE), order_by=order, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _client() -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient()
