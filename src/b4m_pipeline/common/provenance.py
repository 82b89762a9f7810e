"""What an adapter says about where it came from, and which of it decides its weights."""

import ast
import hashlib
import io
import json
import tokenize
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from b4m_pipeline import __version__

ROOT = Path(__file__).parents[1]
RECIPE_CODE = ("common/devices", "common/seeding", "common/words", "method", "diffusion", "inputs", "training")
"""Modules and packages that decide an adapter's weights. What draws, measures, registers or reports is not among them."""
NOT_RECIPE = (
    "diffusion/architectures",
    "diffusion/footprint",
    "diffusion/held",
    "diffusion/lora_files",
    "diffusion/sampling",
    "inputs/counterparts",
    "inputs/drawings",
    "inputs/encoding_cache",
    "inputs/staleness",
    "method/combine",
    "method/files",
    "method/merge",
    "method/whole",
    "training/checkpoints",
    "training/footprint",
    "training/lora",
    "training/places",
    "training/zip_lora",
)
"""Of these, the modules that do not; nor do the packages' params.py, whose values are in the recipe themselves."""
GUARD_CODE = tuple(
    f"evaluation/{name}" for name in ("colour", "efficientnet", "guard", "judges", "measures", "samples", "table")
)
"""What decides which step of make is kept."""
RECIPE_LIBRARIES = ("diffusers", "peft", "torch")
CODE_KEY, LIBRARIES_KEY = "recipe_code", "recipe_libraries"
"""Metadata of a trained adapter: digests of the modules, and versions of the libraries, that it was trained by, as JSON."""


@cache
def code_version() -> str:
    """Package version and a digest of all its source, so that an edited copy does not pass for the release."""
    digest = hashlib.sha256()
    for file in sorted(ROOT.rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


@cache
def recipe_modules(*parts: str, root: Path = ROOT) -> dict[str, str]:
    """Module ("training/trainer") -> digest of its code, for `parts` of RECIPE_CODE (all of them by default). Comments and
    docstrings do not count."""
    found = {}
    for part in parts or RECIPE_CODE:
        for file in sorted((root / part).rglob("*.py")) or [root / f"{part}.py"]:
            name = file.relative_to(root).with_suffix("").as_posix()
            if parts or not (name in NOT_RECIPE or file.name == "params.py"):
                found[name] = digest_of(_without_prose(file.read_text(encoding="utf-8")))
    return dict(sorted(found.items()))


def recipe_code(*parts: str) -> str:
    """One digest of `recipe_modules`."""
    return digest_of(recipe_modules(*parts))


def recipe_libraries() -> dict[str, str]:
    """Versions, without what a build for another device adds (2.13.0+cpu)."""
    return {name: version(name).split("+")[0] for name in RECIPE_LIBRARIES}


@cache
def _without_prose(source: str) -> str:
    """Source without comments, docstrings and empty lines. Works on text: the syntax tree's form varies with Python's
    version."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline) if "#" in source else ():
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    strings, prose = set[int](), set[int]()  # places of lines within strings of several lines, and of docstrings
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno and node.end_lineno > node.lineno:
            strings.update(range(node.lineno - 1, node.end_lineno))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            rows = range(node.lineno - 1, node.end_lineno or node.lineno)
            alone = not lines[rows[0]][: node.col_offset].strip() and not lines[rows[-1]][node.end_col_offset :].strip()
            prose.update(rows if alone else ())
    kept = (place for place, line in enumerate(lines) if place not in prose and (line.strip() or place in strings))
    return "\n".join(lines[place] if place in strings else lines[place].rstrip() for place in kept)


def file_digest(file: Path) -> str:
    """sha256 of a file's bytes."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(*parts: Any) -> str:
    """Short sha256 of JSON-serialisable parts, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """All that decides a trained adapter's weights: two with equal digests need not be trained twice.

    data: digest of pictures and captions; parents: digests of what training starts from; parameters: nested, those without
    effect on the weights and those that may grow when a training goes on named by `ignored` and `growing` ("train.steps").
    """

    kind: str
    name: str
    frame: str
    """The frame's fingerprint, which knows the base model's weights."""
    data: str
    parameters: dict[str, Any]
    parents: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    growing: tuple[str, ...] = ()
    code: dict[str, str] = field(default_factory=recipe_modules)
    libraries: dict[str, str] = field(default_factory=recipe_libraries)

    @property
    def digest(self) -> str:
        return self._digest(self.ignored)

    @property
    def checkpoint_digest(self) -> str:
        """The same for any length of the training: a checkpoint with it can be gone on from."""
        return self._digest((*self.ignored, *self.growing))

    def _digest(self, without: tuple[str, ...]) -> str:
        kept = {name: value for name, value in flat(self.parameters).items() if not _within(name, without)}
        return digest_of(
            *(self.kind, self.name, self.frame, self.data, self.parents, kept), *(digest_of(self.code), self.libraries)
        )

    def metadata(self) -> dict[str, str]:
        """What a trained adapter keeps of it."""
        return {
            **{"kind": self.kind, "name": self.name, "data_digest": self.data, "recipe_digest": self.digest},
            **{"params": json.dumps(self.parameters, sort_keys=True), "code_version": code_version()},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **{CODE_KEY: json.dumps(self.code, sort_keys=True), LIBRARIES_KEY: json.dumps(self.libraries, sort_keys=True)},
        }

    def differences(self, about: dict[str, str]) -> list[str]:
        """What differs from the recipe of an adapter with the metadata `about`, a phrase each."""
        found = []
        if about["data_digest"] != self.data:
            found.append("pictures or captions changed")
        if about["frame"] != self.frame:
            found.append("base model or frame changed")
        before, now = flat(json.loads(about["params"])), flat(json.loads(json.dumps(self.parameters)))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name) and not _within(name, self.ignored):
                found.append(f"{name} {before.get(name, 'unset')} -> {now.get(name, 'unset')}")
        for key, own, phrase in (
            (LIBRARIES_KEY, self.libraries, "{name} {before} -> {now}"),
            (CODE_KEY, self.code, "code of {name} changed"),
        ):
            earlier = json.loads(about.get(key, "{}"))
            for name in sorted(earlier.keys() | own.keys()):
                if earlier.get(name) != own.get(name):
                    found.append(phrase.format(name=name, before=earlier.get(name, "none"), now=own.get(name, "none")))
        return found


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _within(name: str, names: tuple[str, ...]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)
