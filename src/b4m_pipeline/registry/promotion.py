"""Which version of an adapter is in use, and which was before; look-up of adapters by what they are of.

MLflow moves an alias in one step but keeps no history of it, and cannot move it on a condition. So every move is also written
down as a tag of its own on the registered model, `history.ALIAS.TIME-ID`: a tag is never written twice, nothing is lost when
two people promote at once, and an alias that was moved by other means is noticed.
"""

import json
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from b4m_pipeline.method.adapter import example_prompt
from b4m_pipeline.registry.adapters import NAME_OF_KIND

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from rich.table import Table


class PromotionError(ValueError):
    """A name, alias or version that the registry does not have, or an alias that somebody else moved meanwhile."""


@dataclass(frozen=True)
class Move:
    """What an alias's move came to: its versions before (None: it was not there) and now."""

    name: str
    alias: str
    before: str | None
    now: str

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}: version {self.now} (before: {self.before or 'none'})"


def promote(name: str, version: str | None = None, alias: str = "champion", client: "MlflowClient | None" = None) -> Move:
    """Point the alias at a version, by default the one that `candidate` is. Raises PromotionError if there is no such name or
    version, or if another promotion took the alias over before this one could be confirmed."""
    client = client or _client()
    aliases = _aliases(client, name)
    if version is None:
        if "candidate" not in aliases:
            raise PromotionError(f"{name} has no candidate: say which version is meant, --version {_newest(client, name)}")
        version = aliases["candidate"]
    if not _exists(client, name, version):
        raise PromotionError(f"{name} has no version {version}; its newest is {_newest(client, name)}")
    before = aliases.get(alias)
    if before is not None and _position(client, name, alias) != before:
        _write_down(client, name, alias, "promote", before)  # moved by hand: that counts as a promotion too
    _move(client, name, alias, version, "promote")
    return Move(name, alias, before, version)


def roll_back(name: str, alias: str = "champion", client: "MlflowClient | None" = None) -> Move:
    """Point the alias at the version that it had before; once more, at the one before that. Versions that were deleted are left
    out. Raises PromotionError if there is none, or if somebody else moved the alias meanwhile."""
    client = client or _client()
    before = _aliases(client, name).get(alias)
    if before is None:
        raise PromotionError(f"{name} has no {alias} that could be rolled back: kedro promote {name}")
    stack = _stack(client, name, alias)
    if before in stack:  # what lies above it was promoted, then undone by hand
        stack = stack[: len(stack) - stack[::-1].index(before) - 1]
    earlier = [version for version in stack if version != before and _exists(client, name, version)]
    if not earlier:
        raise PromotionError(f"{name} had no version as {alias} before {before}: there is nothing to roll back to")
    _move(client, name, alias, earlier[-1], "roll back")
    return Move(name, alias, before, earlier[-1])


@dataclass(frozen=True)
class Entry:
    """A version of a registered adapter. created: local time to the minute; about: its tags; description: its card."""

    name: str
    version: str
    aliases: tuple[str, ...]
    kind: str
    concept: str
    frame: str
    base: str
    created: str
    about: dict[str, str] = field(default_factory=dict, repr=False)
    description: str = field(default="", repr=False)
    run_id: str = field(default="", repr=False)


def find_adapters(
    kind: str | None = None,
    concept: str | None = None,
    frame: str | None = None,
    base: str | None = None,
    client: "MlflowClient | None" = None,
) -> list[Entry]:
    """The registered adapters, by name, newest version first. kind: as in `NAME_OF_KIND`; concept: the name of a content or
    style, of adapters with both either; frame: the fingerprint's beginning; base: a part of the base model's name or
    digest."""
    client, entries = client or _client(), []
    aliases: dict[str, dict[str, str]] = {}
    for found in _versions(client):
        about = found.tags
        if about.get("kind") not in NAME_OF_KIND or "frame" not in about:
            continue  # somebody else's model
        named = about.get("base_model_id") or about.get("base_model", "")
        concepts = [about[key] for key in ("content_name", "style_name") if key in about] or [about.get("name", "")]
        wanted = [not kind or NAME_OF_KIND[about["kind"]] == kind, not concept or concept in concepts]
        if not all([*wanted, not frame or about["frame"].startswith(frame), not base or base in named]):
            continue
        if found.name not in aliases:
            aliases[found.name] = _aliases(client, found.name)
        own = tuple(sorted(alias for alias, version in aliases[found.name].items() if version == str(found.version)))
        of = (NAME_OF_KIND[about["kind"]], " + ".join(concepts), about["frame"], named)
        created = datetime.fromtimestamp(found.creation_timestamp / 1000).strftime("%Y-%m-%d %H:%M")
        told = dict(about), found.description or "", found.run_id or ""
        entries.append(Entry(found.name, str(found.version), own, *of, created, *told))
    return sorted(entries, key=lambda entry: (entry.name, -int(entry.version)))


def table(entries: list[Entry]) -> "Table":
    """The entries to be shown on a terminal."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False)
    for heading in ("name", "version", "aliases", "kind", "concept", "frame", "base", "created", "prompt"):
        drawn.add_column(heading, overflow="fold", justify="right" if heading == "version" else "left")
    for entry in entries:
        row = (entry.name, entry.version, ", ".join(entry.aliases), entry.kind, entry.concept, entry.frame[:8], entry.base)
        drawn.add_row(*row, entry.created, example_prompt(entry.about) or "")
    return drawn


def _client() -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient()


def _aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    """Alias -> version. Raises PromotionError for a name that the registry does not have."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise PromotionError(f"The registry has no {name}; kedro adapters lists what it has") from error


def _versions(client: "MlflowClient", criterion: str | None = None) -> list:
    found, token = [], None
    while True:
        page = client.search_model_versions(criterion, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _newest(client: "MlflowClient", name: str) -> str:
    versions = [int(found.version) for found in _versions(client, f"name='{name}'")]
    return str(max(versions)) if versions else "none"


def _exists(client: "MlflowClient", name: str, version: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version) is not None
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False


def _move(client: "MlflowClient", name: str, alias: str, version: str, action: str) -> None:
    """Set the alias, look whether it stayed, write it down. Whoever set it last has it, and all others are told."""
    client.set_registered_model_alias(name, alias, version)
    moment = time.time_ns()  # before the look: a move that it does not see yet is a later one
    now = _aliases(client, name).get(alias)
    if now != version:
        raise PromotionError(
            f"{name}@{alias} was set to version {version}, but somebody else moved it at the same time: it is version {now} now"
        )
    _write_down(client, name, alias, action, version, moment)


def _write_down(client: "MlflowClient", name: str, alias: str, action: str, version: str, moment: int | None = None) -> None:
    key = f"history.{alias}.{moment or time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    client.set_registered_model_tag(name, key, json.dumps({"action": action, "version": version}))


def _stack(client: "MlflowClient", name: str, alias: str) -> list[str]:
    """The alias's versions that were not rolled back, in order; the last one is what it should be now."""
    prefix = f"history.{alias}."
    stack: list[str] = []
    moves = {key: value for key, value in client.get_registered_model(name).tags.items() if key.startswith(prefix)}
    for key in sorted(moves):
        move = json.loads(moves[key])
        if move["action"] == "roll back" and move["version"] in stack:
            stack = stack[: len(stack) - stack[::-1].index(move["version"])]
        elif stack[-1:] != [move["version"]]:
            stack.append(move["version"])
    return stack


def _position(client: "MlflowClient", name: str, alias: str) -> str | None:
    return next(reversed(_stack(client, name, alias)), None)
