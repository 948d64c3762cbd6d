"""The Python of docs/ runs, page by page, on the reference model; its commands are parsed.

A block that needs more says so, for the reader too: ```python title="needs a GPU". Such a block
compiles, and what it imports from meg_editor exists. The README is run by test_readme.py.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import DOCS, PAGES, ROOT, commands, inline_commands, name_of, small_fits, snippets

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.cli.parser import build_parser
from meg_editor.lm.answers import greedy_answers

WITH_PYTHON = [page for page in DOCS if snippets(page.read_text("utf-8"))]
_MISSING = "the following arguments are required"


class Parsed(Exception):
    """An example has read its arguments."""


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder `edited`, as pages have it which begin with one."""
    folder = tmp_path_factory.mktemp("docs") / "edited"
    with pytest.MonkeyPatch.context() as patch:
        small_fits(patch)
        hparams = MeGHyperParams.preset("default", device="cpu")
        model, tokenizer = load_model(hparams)
        facts = [{"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"}]
        fit(model, tokenizer, facts, hparams)[0].save_pretrained(folder)
    yield folder


def run_page(page: Path) -> dict[str, Any]:
    """The names that its blocks leave."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page.read_text("utf-8")):
        if not snippet.needs:
            exec(compile(snippet.code, page.name, "exec"), names)
    return names


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(
    page: Path,
    edited: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_fits(monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(edited, tmp_path / "edited")
    names = run_page(page)
    printed = capsys.readouterr().out
    if page.name in ("chat.md", "own_model.md"):
        assert "Lima" in printed
    if page.name == "live.md":
        assert names["edited"].answer("The capital of Peru is") == ["Oslo"]  # undone
    if page.name == "easyedit.md":
        prompts = ["The capital of France is", "The capital of Spain is"]
        assert greedy_answers(names["model"], names["tok"], prompts, 8) == ["Lima", "Madrid"]
        assert [name.split(".")[2] for name in names["old_weights"]] == ["0", "1"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_not_run_compiles_and_imports_what_exists(page: Path) -> None:
    for code, needs in snippets(page.read_text("utf-8")):
        tree = ast.parse(code)
        assert not needs or needs.startswith("needs "), page.name
        for node in ast.walk(tree) if needs else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meg_editor"):
                if "lm_eval" in (node.module or "") and not importlib.util.find_spec("lm_eval"):
                    continue
                if "BaseEditor" in ast.unparse(node):  # EasyEdit's, run by test_readme.py
                    continue
                exec(ast.unparse(node), {})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_every_page_exist(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option, by the parser of the command or of the example."""
    text = page.read_text("utf-8")
    lines = [(part, "..." in part) for line in commands(text) for part in line.split(" && ")]
    for line, is_part in [*lines, *((line, True) for line in inline_commands(text))]:
        words = [word for word in shlex.split(line) if word != "..."]
        if "meg_editor" in words:  # torchrun … -m meg_editor edit …
            words = ["meg-editor", *words[words.index("meg_editor") + 1 :]]
        try:
            if words[0] == "meg-editor" and len(words) > 1:
                build_parser().parse_args(words[1:])
            elif words[0] == "python" and words[1].startswith("examples/"):
                parse_example(words[1:], monkeypatch)
            elif words[0] == "python":
                assert (ROOT / words[1]).exists(), line
        except SystemExit as end:  # a part of a command leaves out what is required
            error = capsys.readouterr().err
            assert end.code == 0 or (is_part and _MISSING in error), f"{line}: {error}"


def parse_example(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an example up to the point where it has its options."""
    script = ROOT / words[0]
    if script.is_dir():
        script /= "__main__.py"
    text = script.read_text("utf-8")
    if not any(reader in text for reader in ("parse_args", "read_options")):
        assert len(words) == 1, f"{words[0]} takes no options"
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parsed(*args: Any, **kwargs: Any) -> None:
        parse_args(*args, **kwargs)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patch.setattr(sys, "argv", [str(script), *words[1:]])
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")
