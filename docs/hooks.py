"""Hooks of the documentation site (mkdocs.yml). They let it show what is written once, outside docs/:

- a line `<!-- README.md, up to "## Some heading" -->` becomes that part of the README, without its title;
- the pages of `MOUNTED` are added, with the pictures that they show;
- a link to any other file of the repository becomes one to `repo_url`, or plain text where none is set.

The same files are read on GitHub, where their links are right as they stand.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
MOUNTED = {
    # file of the repository -> page of the site
    "README.md": "readme.md",
    "data/01_raw/README.md": "reference/data.md",
    "data/06_models/embedded_base/README.md": "reference/embedded_base.md",
    "data/06_models/embedded_base/sheet.png": "reference/sheet.png",
    "data/06_models/embedded_base/taught.png": "reference/taught.png",
    "data/06_models/embedded_clip/README.md": "reference/embedded_clip.md",
}
DESCRIBED = {
    # code -> the page that its docstrings are on
    **{
        f"src/b4m_pipeline/{package}/{module}.py": f"reference/{module}.md"
        for package, modules in {
            "method": ("frame", "layers", "combine", "riemannian"),
            "training": ("stages", "setup", "trainer"),
        }.items()
        for module in modules
    },
    **{file.relative_to(ROOT).as_posix(): "reference/parameters.md" for file in ROOT.glob("src/b4m_pipeline/*/params.py")},
    "src/b4m_pipeline/datasets": "reference/datasets.md",
}
_ORIGINS = {page: origin for origin, page in MOUNTED.items()}
_INCLUDE = re.compile(r'^<!-- README\.md, up to "(?P<end>.+)" -->$', re.MULTILINE)
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def on_files(files: Files, config) -> Files:
    """Add the pages that lie outside docs/."""
    for origin, page in MOUNTED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / origin)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Include the README's part, and point links to where their targets are on the site."""
    uri = page.file.src_uri
    text = _redirect(markdown, _ORIGINS.get(uri, f"docs/{uri}"), uri, config.repo_url)
    return _INCLUDE.sub(lambda found: _redirect(_readme_up_to(found["end"], uri), "README.md", uri, config.repo_url), text)


def _readme_up_to(heading: str, uri: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    body, found, _ = text.partition(f"\n{heading}\n")
    if not found:
        raise PluginError(f"{uri} includes README.md up to {heading!r}: the README has no such heading")
    return body.partition("\n")[2].strip()


def _redirect(markdown: str, origin: str, uri: str, repo_url: str | None) -> str:
    """Relative links of a text that stands in `origin` as links of the page `uri`. Code blocks are left alone."""

    def link(found: re.Match) -> str:
        path, _, anchor = found["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        target = MOUNTED.get(file) or DESCRIBED.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if target == uri:
            return found["text"]
        if target is None and os.path.exists(ROOT / file):
            return f"[{found['text']}]({repo_url.rstrip('/')}/blob/main/{file})" if repo_url else found["text"]
        # What is nowhere is left to MkDocs, which says so.
        relative = posixpath.relpath(target or file, posixpath.dirname(uri) or ".")
        return f"{found['image']}[{found['text']}]({relative}{'#' + anchor if anchor else ''})"

    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in _FENCE.split(markdown))
