"""mkdocs hook: the site carries what its pages link to.

README.md is its first page. Links of the sources are relative, as a code host wants them; a linked
file outside docs/ becomes part of the site under repository/: Markdown and notebooks as pages, a
folder as a list of its files, anything else as a copy.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OUTSIDE = "repository/"  # where the site has what is not in docs/
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)]*)?(\))")


def place_of(path: Path) -> str:
    """Where a file or folder of the repository is in the site, as a source of mkdocs."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    place = OUTSIDE + path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return f"{place}/index.md"
    return str(Path(place).with_suffix(".md")) if path.suffix == ".ipynb" else place


def links(text: str, folder: Path) -> Iterator[Path]:
    """The files and folders of the repository that a text links to."""
    for match in _LINK.finditer(_FENCE.sub("", text)):
        path = Path(os.path.normpath(folder / match[2]))
        if path.is_relative_to(ROOT) and path.exists():
            yield path


def folder_of(place: str) -> Path:
    """The folder that the links of the page at a place start from."""
    if place == "index.md":
        return ROOT
    outside = place.startswith(OUTSIDE)
    return (ROOT / place.removeprefix(OUTSIDE) if outside else DOCS / place).parent


def rewritten(text: str, place: str) -> str:
    """The text of the page at a place, its links leading to places in the site."""
    folder = folder_of(place)

    def relative(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match[2]))
        if not (path.is_relative_to(ROOT) and path.exists()):
            return match[0]
        target = posixpath.relpath(place_of(path), posixpath.dirname(place) or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    parts = _FENCE.split(text)
    return "".join(part if n % 2 else _LINK.sub(relative, part) for n, part in enumerate(parts))


def listing(folder: Path) -> str:
    """A page: the files of a folder."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    rows = [f"- [{name}]({name})" for name in names if not name.startswith((".", "__"))]
    return f"# {folder.relative_to(ROOT).as_posix()}/\n\n" + "\n".join(rows) + "\n"


def text_of(path: Path) -> str | None:
    """The Markdown of what becomes a page here; None for a copy, and for a notebook."""
    if path.is_dir():
        return listing(path)
    return path.read_text("utf-8") if path.suffix == ".md" else None


def in_nav(entry: Any) -> set[str]:
    """The sources that the nav of mkdocs.yml names."""
    if isinstance(entry, str):
        return {entry}
    values = entry.values() if isinstance(entry, dict) else entry
    return set().union(*map(in_nav, values))


def on_files(files: Any, config: Any) -> Any:
    """Add README.md, the nav's pages outside docs/ and whatever is linked, link by link."""
    named = in_nav(config.nav)
    todo = [ROOT / "README.md"]
    todo += [folder_of(name) / Path(name).name for name in named if name.startswith(OUTSIDE)]
    todo += [path.with_suffix(".ipynb") for path in todo if not path.exists()]
    todo += [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    done: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in done or not path.exists():
            continue
        done.add(path)
        text, place = text_of(path), place_of(path)
        if text is not None:
            todo += links(text, path if path.is_dir() else path.parent)
        if files.get_file_from_path(place) or path.suffix == ".ipynb":
            continue  # notebooks: generated.py
        level = InclusionLevel.UNDEFINED if place in named else InclusionLevel.NOT_IN_NAV
        source = {"content": text} if text is not None else {"abs_src_path": str(path)}
        files.append(File.generated(config, place, inclusion=level, **source))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page's Markdown with its links rewritten."""
    return rewritten(markdown, page.file.src_uri)
