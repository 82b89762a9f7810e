"""Where tests lie, and how long modules are: what CONTRIBUTING.md says of both."""

from pathlib import Path

from tests.test_startup import ROOT

PACKAGE = ROOT / "src/b4m_pipeline"
LONGEST_MODULE = 350
UNTESTED = {"__init__.py", "__main__.py", "pipeline.py"}
"""What only puts names together: tests/test_startup.py imports all of it."""
AT_THE_TOP = {
    "cli.py": "test_hooks.py",
    "context.py": "test_context.py",
    "hooks.py": "test_hooks.py",
    "pipeline_registry.py": "test_startup.py",
    "prerequisites.py": "test_prerequisites.py",
    "serving.py": "registry/test_serving.py",
    "settings.py": "test_startup.py",
}
"""Modules that have no package, and the tests that are about them among others."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_module_has_its_tests_at_the_same_place() -> None:
    missing = []
    for file in modules():
        module = file.relative_to(PACKAGE)
        own = module.with_name(f"test_{module.name}")
        place = ROOT / "tests" / (AT_THE_TOP[module.name] if module.parent == Path(".") and module.name in AT_THE_TOP else own)
        if file.name not in UNTESTED and not place.is_file():
            missing.append(f"src/b4m_pipeline/{module.as_posix()} -> {place.relative_to(ROOT).as_posix()}")
    for tool in sorted((ROOT / "tools").glob("*.py")):
        if tool.name not in UNTESTED and not (ROOT / "tests/tools" / f"test_{tool.name}").is_file():
            missing.append(f"tools/{tool.name} -> tests/tools/test_{tool.name}")
    assert not missing, "without tests:\n" + "\n".join(missing)


def test_no_file_of_tests_is_about_a_module_that_is_not_there() -> None:
    packages = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()}
    orphans = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        place = file.relative_to(ROOT / "tests")
        if place.parts[0] in packages and not (PACKAGE / place.with_name(place.name.removeprefix("test_"))).is_file():
            orphans.append(place.as_posix())
    assert not orphans, f"tests of no module: {orphans}"


def test_no_module_is_longer_than_can_be_read() -> None:
    lengths = {file.relative_to(PACKAGE).as_posix(): len(file.read_text(encoding="utf-8").splitlines()) for file in modules()}
    long = {name: length for name, length in lengths.items() if length > LONGEST_MODULE}
    assert not long, f"more than {LONGEST_MODULE} lines, split them: {long}"
