"""README and docs/: links and anchors lead somewhere, the site names every page and asks no other server for anything."""

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.test_startup import ROOT

DOCS = sorted(ROOT.glob("docs/**/*.md"))
CARDS = [ROOT / "data" / name / "README.md" for name in ("01_raw", "06_models/embedded_base", "06_models/embedded_clip")]
PAGES = [ROOT / "README.md", *CARDS, *DOCS]


def without_code(markdown: str) -> str:
    """A page's prose: no fenced or indented blocks, no code in a line."""
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"(?<=\n\n)(?: {4}.*\n+)+", "\n", prose)
    return re.sub(r"`[^`\n]*`", lambda found: "`" + "x" * (len(found[0]) - 2) + "`", prose)


def links(markdown: str) -> list[str]:
    """Targets of links and pictures that lead to files of the repository or to a heading."""
    targets = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", without_code(markdown))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(markdown: str) -> set[str]:
    """The ids that GitHub gives a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose, re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken(page: Path, markdown: str) -> list[str]:
    """Links of a page whose file or heading does not exist."""
    wrong = []
    for target in links(markdown):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            wrong.append(f"{target}: no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.append(f"{target}: no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_the_checker_finds_what_is_broken() -> None:
    page = ROOT / "docs/method.md"
    good = "[a](evaluation.md#figures) [b](#rank) ![c](images/contact_sheet.png) [d](https://example.com/x.md) `[e](none.md)`"
    assert broken(page, good) == [] and len(links(good)) == 3
    bad = "[a](nowhere.md) [b](evaluation.md#nowhere) [`c`](#nowhere) [d](../../outside.md)"
    assert [line.split(":")[0] for line in broken(page, bad)] == [
        "nowhere.md", "evaluation.md#nowhere", "#nowhere", "../../outside.md"
    ]  # fmt: skip
    assert anchors("# Two words, `code` & more\n## A\n## A\n```\n# no\n```") == {"two-words-code--more", "a", "a-1"}


def said() -> str:
    """All source text, strings of several lines put together: what the program can say is in it."""
    source = "\n".join(file.read_text(encoding="utf-8") for file in ROOT.glob("src/b4m_pipeline/**/*.py"))
    return re.sub(r'"\n\s*f?"', "", source)


def test_messages_that_troubleshooting_quotes_are_those_of_the_program() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    no_messages = r"--|Error:|kedro |pip |hf |\w+: [\w.]+$"  # options, commands, parameters
    quoted = [span for span in re.findall(r"`([^`\n]+)`", page) if " " in span and not re.match(no_messages, span)]
    messages = said()
    parts = [part.strip() for span in quoted for part in span.split("...") if part.strip(" .,:()")]
    assert len(parts) > 12 and [part for part in parts if part not in messages] == []


NO_PARAMETERS = r".*\.(train_half|loss_curve|(process_)?peak_memory_gib)"  # nodes, datasets and metrics of the breaks


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "reference"], ids=lambda page: page.stem)
def test_parameters_that_pages_name_are_in_the_reference(page) -> None:
    reference = (ROOT / "docs/reference/parameters.md").read_text(encoding="utf-8")
    groups = set(re.findall(r"^## ([a-z_]+)$", reference, re.MULTILINE))
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:[=:][^`]*)?`", page.read_text(encoding="utf-8")))
    named = {name for name in named if name.split(".")[0] in groups and not re.fullmatch(NO_PARAMETERS, name)}
    assert "content_break" in groups and [name for name in sorted(named) if f"`{name}`" not in reference] == []


def site() -> dict:
    """mkdocs.yml."""
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def entries(nav: list | dict | str) -> list[str]:
    """The pages that a part of the navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in entries(part)]


def hooks():
    """The module docs/hooks.py."""
    pytest.importorskip("mkdocs", reason='the site needs pip install -e ".[docs]"')
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_navigation_names_every_page_once() -> None:
    named = Counter(entries(site()["nav"]))
    assert [page for page, times in named.items() if times > 1] == []
    assert {page.relative_to(ROOT / "docs").as_posix() for page in DOCS} <= set(named)


def test_navigation_names_nothing_else() -> None:
    module = hooks()
    own = {page.relative_to(ROOT / "docs").as_posix() for page in DOCS}
    mounted = {page for page in module.MOUNTED.values() if page.endswith(".md")}
    assert set(entries(site()["nav"])) == own | mounted
    assert [origin for origin in (*module.MOUNTED, *module.DESCRIBED) if not (ROOT / origin).exists()] == []


def test_links_out_of_docs_become_links_of_the_site() -> None:
    redirect = hooks()._redirect
    code = "\n```\n[a](../conf/base)\n```"
    text = "[a](../data/01_raw/README.md#licences-and-attribution) [b](../conf/base) [c](method.md#rank)" + code
    links_of_site = "[a](reference/data.md#licences-and-attribution) b [c](method.md#rank)" + code
    assert redirect(text, "docs/evaluation.md", "evaluation.md", None) == links_of_site
    page = redirect("[a](docs/method.md) [b](conf/base)", "README.md", "how-to/x.md", "https://git.example.com/b4m/")
    assert page == "[a](../method.md) [b](https://git.example.com/b4m/blob/main/conf/base)"


def test_site_builds_strictly_and_asks_no_other_server(tmp_path) -> None:
    hooks()
    assert 'mkdocs" build --strict\n' in (ROOT / "Makefile").read_text()  # what `make docs` does after its installation
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {page.relative_to(tmp_path / "site").as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert "Two commands" in pages["index.html"] and "README.md, up to" not in pages["index.html"]
    assert "RiemannianPreconditioner" in pages["reference/riemannian/index.html"]
    loads = r'<(?:script|img|iframe)[^>]+src="(https?:)?//|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(https?:)?//'
    assert [name for name, html in pages.items() if re.search(loads, html)] == []
