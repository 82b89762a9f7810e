"""Whether what an earlier run left is of this run's content and style: stages can be run one by one, and folders between them
hold what the last run wrote."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from b4m_pipeline.common.provenance import file_digest, flat
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams

if TYPE_CHECKING:
    import pandas as pd

_DIGITS = 12  # of the digests that adapters keep (see TrainingSet.provenance)
_REMEDY = "Run the pipelines that make it again with this run's parameters, or give this run those that it was made with"


class StaleInputError(ValueError):
    """What an earlier run left is of another content, style or frame, or of other pictures."""


def require_adapter(what: str, adapter: Adapter, concepts: Mapping[str, ConceptParams], frame: FrameParams) -> None:
    """Raise StaleInputError if an adapter was not made for these concepts, by "content" and "style", or for this frame. what:
    its name in the error."""
    about, kind = adapter.metadata, adapter.metadata["kind"]
    pictures = json.loads(about.get("pictures", "{}"))
    for role, concept in concepts.items():
        if kind in ("content", "style") and role != kind:
            continue
        name, token = ("name", "token") if role == kind else (f"{role}_name", f"{role}_token")
        _require_concept(what, role, concept, {(about.get(name, ""), about.get(token, ""))})
        _require_pictures(what, role, concept, pictures.get(role, {}).get("sha256", ()))
    before, now = flat(json.loads(about["params"]).get("frame", {})), flat(json.loads(frame.model_dump_json()))
    if changed := sorted(key for key in before.keys() & now.keys() if before[key] != now[key]):
        key = changed[0]
        raise StaleInputError(f"{what} was made with frame.{key} {before[key]}, and this run has {now[key]}. {_REMEDY}")


def require_table(what: str, table: "pd.DataFrame", concepts: Mapping[str, ConceptParams]) -> None:
    """Raise StaleInputError if the rows of a manifest or of a training set are not of these concepts' pictures as they are."""
    for role, concept in concepts.items():
        rows = table[table["role"] == role]
        _require_concept(what, role, concept, set(zip(rows["concept"], rows["token"], strict=True)))
        _require_pictures(what, role, concept, rows["sha256"])


def _require_concept(what: str, role: str, concept: ConceptParams, found: set[tuple[str, str]]) -> None:
    if found != {(concept.name, concept.token)}:
        listed = ", ".join(f"{name!r} ({token})" for name, token in sorted(found)) or "not there"
        raise StaleInputError(
            f"{what}: its {role} is {listed}, and this run's is {concept.name!r} ({concept.token}). {_REMEDY}"
        )


def _require_pictures(what: str, role: str, concept: ConceptParams, digests: Iterable[str]) -> None:
    """digests: sha256 of files, or their beginnings."""
    used = {digest[:_DIGITS] for digest in digests}
    folder = Path(concept.path).expanduser()
    if used and (lost := used - _digests(folder)):
        raise StaleInputError(
            f"{what} was made from {len(used)} pictures of the {role}, and {len(lost)} of them are not in {folder} as they were"
            f". {_REMEDY}"
        )


def _digests(folder: Path) -> set[str]:
    """Of all files in it that can be read."""
    found = set()
    for file in folder.rglob("*"):
        with suppress(OSError):
            found.add(file_digest(file)[:_DIGITS])
    return found
