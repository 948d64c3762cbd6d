"""The site of mkdocs.yml: built without a warning, complete, and from nothing outside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pages import ROOT

import meg_editor
from meg_editor import benchmark
from meg_editor.cli.parser import build_parser
from meg_editor.config.hparams import MeGHyperParams

NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")
for needed in NEEDED:
    pytest.importorskip(needed, reason="the site is built with mkdocs-material and mkdocstrings")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What a browser fetches by itself; a link is followed by a reader alone.
_FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_OUTSIDE = re.compile(r"^(https?:)?//")
_IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)")


class Resources(HTMLParser):
    """Addresses that a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "alternate", "prev", "next"):
            return
        self.found += [values.get(_FETCHED[tag]) or ""] if tag in _FETCHED else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Built with --strict: any warning fails, of links and anchors too."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    yield folder


def html(site: Path, name: str) -> str:
    return (site / name).read_text("utf-8")


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        resources = Resources()
        resources.feed(page.read_text("utf-8"))
        assert resources.found
        outside = [address for address in resources.found if _OUTSIDE.match(address)]
        assert not outside, f"{page.relative_to(site)}: {outside}"
    for sheet in site.rglob("*.css"):
        assert not _IN_CSS.findall(sheet.read_text("utf-8")), sheet.name


def test_every_page_is_in_the_navigation(site: Path) -> None:
    """Strict mode names a page that is not; this one sees that the pages are there."""
    home = html(site, "index.html")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / name).exists() and f'href="{name}"' in home, name


def test_the_readme_is_the_first_page(site: Path) -> None:
    home = html(site, "index.html")
    assert "Ten lines of Python" in home and 'src="demo.svg"' in home
    assert 'href="own_model.html"' in home and "docs/own_model" not in home


def test_the_reference_has_every_public_name_with_its_example(site: Path) -> None:
    page = html(site, "reference/python.html")
    for name in meg_editor.__all__:
        assert f'id="meg_editor.{name}"' in page, name
    assert page.count("language-pycon") >= len(meg_editor.__all__)
    assert "<blockquote>" not in page  # an example that was taken for a quotation
    page = html(site, "reference/benchmark.html")
    assert all(f'id="meg_editor.benchmark.{name}"' in page for name in benchmark.__all__)


def test_commands_and_settings_are_those_of_the_package(site: Path) -> None:
    page = html(site, "reference/cli.html")
    (commands,) = build_parser()._subparsers._group_actions
    for name, command in commands.choices.items():
        assert f'id="{name}"' in page, name
        options = {text for action in command._actions for text in action.option_strings}
        assert all(f"<code>{text}" in page for text in options - {"-h", "--help"}), name
    page = html(site, "reference/settings.html")
    names = MeGHyperParams.preset("default").to_dict()
    assert all(f"<code>{name}</code>" in page for name in names)


def test_notebooks_are_pages_with_their_pictures(site: Path) -> None:
    folder = site / "repository" / "examples" / "notebooks"
    for notebook in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
        assert f"{notebook.stem}-0.png" in html(folder, f"{notebook.stem}.html")
        assert (folder / f"{notebook.stem}-0.png").stat().st_size > 5_000
        assert (folder / notebook.name).exists()


def test_the_search_works_from_a_folder_and_pages_fit_a_phone(site: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="the search is tested with playwright")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if r.url[:4] == "http" else None)
        for name in ("index.html", "method.html", "reference/python.html", "reference/cli.html"):
            page.goto(f"file://{site}/{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(f"file://{site}/index.html")
        page.locator("input[name=query]").press_sequentially("polyak")  # the page waits for keys
        found = page.locator(".md-search-result__link").first
        found.wait_for(timeout=15_000)
        assert "method.html" in (found.get_attribute("href") or "")
        browser.close()
    assert not problems


def test_a_missing_target_fails_the_build(tmp_path: Path) -> None:
    """The check itself is checked, on a copy with a link to a file that is not there."""
    for name in ("docs", "meg_editor", "examples", "hparams"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").unlink()
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    page = tmp_path / "docs" / "limits.md"
    page.write_text(page.read_text("utf-8") + "\n[gone](../hparams/gone.yaml)\n", "utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode and "gone.yaml" in run.stderr
