"""An adapter's identity: what changes it, and what must not."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from b4m_pipeline import __version__
from b4m_pipeline.common import provenance
from b4m_pipeline.common.provenance import NOT_RECIPE, ROOT, Recipe, code_version, digest_of, flat, recipe_code, recipe_modules


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package: each test's own, as digests are kept by folder."""
    return Path(shutil.copytree(ROOT, tmp_path / "b4m_pipeline", ignore=shutil.ignore_patterns("__pycache__")))


def changed(package: Path) -> set[str]:
    """Entries that the copy does not share with the package itself."""
    own, other = recipe_modules(), recipe_modules(root=package)
    return {name for name in own.keys() | other.keys() if own.get(name) != other.get(name)}


def edit(package: Path, module: str, old: str, new: str) -> None:
    file = package / f"{module}.py"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def retold(source: str) -> str:
    """The same code with other words in every docstring, more of them, and comments everywhere that one may stand."""
    lines = source.splitlines()
    prose = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for node in sorted(prose, key=lambda node: -node.lineno):
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [f'{indent}"""Other words, # too.', "", f'{indent}And more."""  # a comment']
    return "# A comment.\n\n\n" + "\n".join(lines) + "\n\n# The last word."


def test_comments_and_docstrings_are_no_code_whatever_the_module(package) -> None:
    for name in recipe_modules():
        file = package / f"{name}.py"
        source = file.read_text(encoding="utf-8")
        file.write_text(retold(source), encoding="utf-8")
        assert "Other words" in file.read_text(encoding="utf-8") != source
    assert changed(package) == set()


def test_code_that_decides_no_weights_does_not_count(package) -> None:
    drawing = [
        "benchmark/report",
        "registry/serving",
        "cli",
        "evaluation/judges",
        "diffusion/sampling",
        "pipelines/break_template",
    ]
    for module in [*drawing, "training/lora", "training/params"]:
        file = package / f"{module}.py"
        file.write_text(file.read_text(encoding="utf-8") + "\nADDED = 1  # more\n", encoding="utf-8")
    assert changed(package) == set()


def test_a_changed_line_changes_its_own_module_alone(package) -> None:
    edit(package, "diffusion/loss", "noise_offset", "other_offset")
    assert changed(package) == {"diffusion/loss"}


def test_a_module_that_comes_or_goes_is_seen(package) -> None:
    (package / "method/another.py").write_text("X = 1\n")
    (package / "training/schedules.py").rename(package / "training/rates.py")
    assert changed(package) == {"method/another", "training/schedules", "training/rates"}


def test_line_ends_of_another_system_do_not_count(package) -> None:
    file = package / "diffusion/loss.py"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert changed(package) == set()


SOURCE = '''"""A module."""

import math


def area(radius):
    """Of a circle.

    In squares of the unit.
    """
    return math.pi * radius**2


NAME = "a"
"""What it is called."""
TEXT = """one
two # three"""
'''


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("Of a circle.", "Of a disc.", False),
        ('"""Of a circle.\n\n    In squares of the unit.\n    """', "'Of a circle.'", False),
        ('"""Of a circle.', 'r"""Of a circle.', False),
        ("import math\n", "import math\n\n\n\n", False),
        ("radius**2", "radius**2  # squared", False),
        ("    return", "    # now\n    return", False),
        ('"""What it is called."""\n', "", False),
        ("What it is called.", "# said of it", False),
        ("radius**2", "radius**3", True),
        ('NAME = "a"', 'NAME = "a#b"', True),
        ("two # three", "two # four", True),
        ("two # three", "two", True),
        ("one\n", "another\n", True),
        ("import math", "import math, sys", True),
    ],
)
def test_what_counts_within_a_module(tmp_path, old, new, counts) -> None:
    assert old in SOURCE
    digests = []
    for name, source in (("before", SOURCE), ("after", SOURCE.replace(old, new, 1))):
        (tmp_path / name / "method").mkdir(parents=True)
        (tmp_path / name / "method/circle.py").write_text(source)
        digests.append(recipe_modules("method", root=tmp_path / name)["method/circle"])
    assert (digests[0] != digests[1]) == counts


def test_a_sign_of_a_comment_within_a_string_hides_nothing_behind_it(tmp_path) -> None:
    digests = set()
    for value in (1, 2):
        (tmp_path / str(value)).mkdir()
        (tmp_path / f"{value}/one.py").write_text(f'COLOUR = "#fff"; WIDTH = {value}  # of a line\n')
        digests.add(recipe_modules("one", root=tmp_path / str(value))["one"])
    assert len(digests) == 2


def imported_by(start: str) -> set[str]:
    """Modules of the package that one of them imports, and what these import, read from their source."""
    found, ahead = set(), [start]
    while ahead:
        name = ahead.pop()
        file = ROOT / f"{name}.py" if (ROOT / f"{name}.py").is_file() else ROOT / name / "__init__.py"
        if name in found or not file.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("b4m_pipeline."):
                module = node.module.removeprefix("b4m_pipeline.").replace(".", "/")
                ahead += [module, *(f"{module}/{alias.name}" for alias in node.names)]
    return found


def test_all_that_a_training_imports_is_in_the_recipe_or_known_not_to_be() -> None:
    """What is imported and may change without training anew: names, parameters (which the recipe holds), and NOT_RECIPE."""
    imported = imported_by("training/stages") | imported_by("inputs/encode") | imported_by("inputs/prepare")
    assert {"training/trainer", "diffusion/families/base", "inputs/looks"} <= imported
    packages = {name for name in imported if (ROOT / name).is_dir()}
    schemas = {name for name in imported if name.endswith("/params")} | {"common/config"}
    without_effect = {
        f"common/{name}" for name in ("hub", "progress", "provenance", "quiet", "tensor_files", "texts", "whole_files")
    }
    assert imported - packages - schemas - set(NOT_RECIPE) - without_effect <= recipe_modules().keys()
    assert all((ROOT / f"{name}.py").is_file() for name in NOT_RECIPE)  # none is the name of what was renamed


def test_parts_are_digested_by_themselves() -> None:
    assert recipe_modules("training/lora").keys() == {"training/lora"}
    assert recipe_code("method") != recipe_code("diffusion") != recipe_code()
    assert recipe_code() == digest_of(recipe_modules())
    number, digest = code_version().split("+")
    assert number == __version__ and len(digest) == 8 and int(digest, 16) >= 0


PARAMETERS = {"frame": {"rank": 4}, "train": {"steps": 2, "rate": 1e-3, "samples": {"every": None}}, "seed": 0}


def recipe(**changes) -> Recipe:
    own = {
        **{"kind": "content", "name": "cup", "frame": "f", "data": "d", "parameters": PARAMETERS, "parents": ("p",)},
        **{"ignored": ("train.samples",), "growing": ("train.steps",), "code": {"training/trainer": "1", "method/frame": "1"}},
        **{"libraries": {"torch": "2.0", "peft": "0.1"}},
    }
    return Recipe(**own | changes)


def trained(**changes) -> dict:
    return PARAMETERS | {"train": PARAMETERS["train"] | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "style"},
        {"name": "mug"},
        {"frame": "g"},
        {"data": "e"},
        {"parents": ("q",)},
        {"parents": ()},
        {"parameters": trained(steps=3)},
        {"parameters": trained(rate=2e-3)},
        {"parameters": trained(more=None)},
        {"parameters": PARAMETERS | {"seed": 1}},
        {"code": {"training/trainer": "2", "method/frame": "1"}},
        {"code": {"training/trainer": "1"}},
        {"libraries": {"torch": "2.1", "peft": "0.1"}},
    ],
    ids=str,
)
def test_all_that_decides_the_weights_changes_the_digest(changes) -> None:
    assert recipe(**changes).digest != recipe().digest


@pytest.mark.parametrize("value", [{"every": 2}, {"every": None, "steps": 3}, 7])
def test_ignored_parameters_do_not_change_it(value) -> None:
    other = recipe(parameters=trained(samples=value))
    assert other.digest == recipe().digest and other.checkpoint_digest == recipe().checkpoint_digest
    assert recipe(parameters=trained(samples_more=value)).digest != recipe().digest  # another name, though it begins alike


def test_a_checkpoint_serves_a_longer_training_and_no_other() -> None:
    longer = recipe(parameters=trained(steps=9))
    assert longer.checkpoint_digest == recipe().checkpoint_digest
    assert recipe(parameters=trained(rate=1.0)).checkpoint_digest != recipe().checkpoint_digest
    fixed = recipe(growing=())
    assert fixed.checkpoint_digest != recipe(growing=(), parameters=trained(steps=9)).checkpoint_digest


def test_the_order_of_dictionaries_does_not_matter() -> None:
    def turned(values: dict) -> dict:
        return {key: turned(own) if isinstance(own, dict) else own for key, own in reversed(values.items())}

    own = recipe()
    other = recipe(parameters=turned(PARAMETERS), code=turned(own.code), libraries=turned(own.libraries))
    assert list(other.parameters) != list(own.parameters) and other.digest == own.digest
    assert other.metadata() == own.metadata()


def test_differences_are_named_in_plain_words() -> None:
    about = recipe().metadata() | {"frame": "f"}
    assert recipe().differences(about) == []
    other = recipe(
        **{"data": "e", "frame": "g", "parameters": trained(rate=2e-3, samples={"every": 5}, more=1)},
        **{"code": {"training/trainer": "2", "inputs/looks": "1"}, "libraries": {"torch": "2.1", "peft": "0.1"}},
    )
    assert other.differences(about) == [
        "pictures or captions changed",
        "base model or frame changed",
        "train.more unset -> 1",
        "train.rate 0.001 -> 0.002",
        "torch 2.0 -> 2.1",
        "code of inputs/looks changed",
        "code of method/frame changed",
        "code of training/trainer changed",
    ]
    old = {key: value for key, value in about.items() if not key.startswith("recipe_")}  # before these were kept
    assert "torch none -> 2.0" in recipe().differences(old)


def test_what_is_kept_is_text_that_says_it_all() -> None:
    about = recipe().metadata()
    assert all(isinstance(value, str) for value in about.values())
    assert about["recipe_digest"] == recipe().digest and json.loads(about["params"]) == PARAMETERS
    assert json.loads(about["recipe_code"]) == recipe().code and json.loads(about["recipe_libraries"]) == recipe().libraries


def test_a_recipe_knows_this_code_and_these_libraries_by_itself(monkeypatch) -> None:
    own = Recipe("content", "cup", "f", "d", {})
    assert own.code == recipe_modules() and set(own.libraries) == {"diffusers", "peft", "torch"}
    monkeypatch.setattr(provenance, "version", lambda name: "2.13.0+cpu")
    assert set(provenance.recipe_libraries().values()) == {"2.13.0"}  # another build is no other version
    assert dataclasses.replace(own, libraries=provenance.recipe_libraries()).digest != own.digest


def test_nested_names_become_dotted_ones() -> None:
    assert flat({"a": 1, "b": {"c": {"d": [2]}, "e": None}}) == {"a": 1, "b.c.d": [2], "b.e": None}


def test_digests_tell_parts_from_each_other() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc") != digest_of(["a", "bc"])
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) and len(digest_of(1)) == 16


def test_a_strings_own_lines_count_and_code_behind_a_docstring_too(tmp_path) -> None:
    def digest(source: str) -> str:
        (tmp_path / "method").mkdir(exist_ok=True)
        (tmp_path / "method/x.py").write_text(source, encoding="utf-8")
        recipe_modules.cache_clear()
        return recipe_modules("method", root=tmp_path)["method/x"]

    text = 'TEXT = """one\n\ntwo  \n"""\n'
    assert len({digest(text), digest(text.replace("\n\n", "\n")), digest(text.replace("two  ", "two"))}) == 3
    assert digest('"doc"; X = 1\n') != digest('"doc"; X = 2\n')
    assert digest('"""doc\n\nmore  \n"""\nX = 1\n') == digest("X = 1\n")
