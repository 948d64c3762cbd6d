"""Results as data: every table of the docs is what the reports in examples/results say."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import meg_editor
from meg_editor.benchmark import read_cells
from meg_editor.benchmark.metric_meta import metric_meta
from meg_editor.cli.command_line import command_line
from meg_editor.cli.parser import build_parser
from meg_editor.evaluation import Pair
from meg_editor.evaluation.report import versions

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted((ROOT / "examples" / "results").glob("*/*/report.json"))


@pytest.fixture(scope="module")
def build() -> Iterator[Any]:
    """docs/build_results.py."""
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        yield importlib.import_module("build_results")


def test_every_table_is_what_the_reports_say(build: Any) -> None:
    for path, text in build.rebuilt().items():
        assert path.read_text("utf-8") == text, f"{path}: python docs/build_results.py"


def test_a_table_says_the_numbers_of_its_report(build: Any) -> None:
    """Read anew, without the code that makes tables."""
    text = (ROOT / "examples/results/README.md").read_text("utf-8")
    part = text.split("<!-- table: benchmark-lm/zsre-methods metrics -->")[1].split("<!-- end")[0]
    rows = [line.strip("| ").split(" | ") for line in part.strip().splitlines()[2:]]
    shown = {name.strip("*"): values for name, *values in rows}
    path = ROOT / "examples/results/benchmark-lm/zsre-methods/report.json"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert shown.keys() == {cell["method"] for cell in cells}
    for cell in cells:
        six = [cell[m][s] for m in ("reliability", "generality", "locality") for s in ("ag", "tf")]
        expected = [*six[:4], cell["worst_case_generality"], *six[4:], cell["score"]]
        assert shown[cell["method"]][:8] == [f"{value:.1f}" for value in expected]


def test_tables_of_prompt_forms_say_the_numbers_of_their_report(build: Any) -> None:
    path = ROOT / "examples/results/reference/forms/report.json"
    for view, entry in (("forms", "forms"), ("answers", "forms_answers")):
        titles, _, *rows = build.built(f"reference/forms@256 {view}").splitlines()
        kinds = titles.strip("| ").split(" | ")[1:]
        shown = {row.strip("| ").split(" | ")[0].strip("*"): row.split(" | ")[1:] for row in rows}
        methods = json.loads(path.read_text("utf-8"))["methods"]
        expected = {name: m[entry] for name, m in methods.items() if m[entry]}
        assert shown.keys() == expected.keys()
        for name, shares in expected.items():
            said = dict(zip(kinds, shown[name], strict=True))
            assert {kind: said[kind].strip("| ") for kind in shares} == {
                kind: f"{share:.1f}" for kind, share in shares.items()
            }


def test_the_table_of_the_demo_says_what_it_reported(build: Any) -> None:
    report = json.loads((ROOT / "examples/results/reference/demo/demo.json").read_text("utf-8"))
    _, _, *rows = build.built("reference/demo demo").splitlines()
    entries = [row.strip("| ").split(" | ") for row in rows]
    shown = {name.strip("*"): numbers for name, *numbers in entries}
    assert list(shown) == list(report["methods"])
    for name, entry in report["methods"].items():
        ways = [
            entry[m][w] for m in ("reliability", "generality", "locality") for w in ("ag", "tf")
        ]
        assert shown[name][:7] == [f"{value:.1f}" for value in [*ways, entry["score"]]]
    assert shown["unedited"][7:] == ["-", "-"]


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("reference/world scores", "expected RUN … and one of score"),
        ("score", "expected RUN … and one of score"),
        ("reference/moon score", "there is no .*reference/moon/report.json"),
        ("reference/world forms", "table forms: expected one RUN@EDITS.* got 64 edits; "),
        ("reference/world strict", "expected one RUN@EDITS.* got 64 edits; "),
        ("reference/world@64,65 score", r"expected some of \[64, .*got \[65\]"),
    ],
)
def test_a_wrong_marker_says_what_was_expected(build: Any, marker: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        build.built(marker)


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_a_report_says_how_it_was_made_and_names_no_folder(path: Path) -> None:
    report = json.loads(path.read_text("utf-8"))
    assert report["command"].startswith("meg-editor benchmark ")
    assert report["versions"].keys() >= {"meg_editor", "torch"}
    assert report["machine"].keys() == {"cpu", "cores", "torch_threads", "gpu"}
    assert not re.findall(r'"/[^"]*"', path.read_text("utf-8"))
    meta = report["metric_meta"]
    assert meta.keys() >= {"reliability.ag", "locality.tf", "worst_case_generality"}
    wanted = {"protocol", "asked", "questions", "answer", "matching", "max_tokens", "n"}
    assert all(entry.keys() == wanted for entry in meta.values())


def test_how_many_were_asked_is_counted_once_for_all_methods() -> None:
    cells = read_cells(ROOT / "examples/results/reference/world/report.json")
    meta = metric_meta(cells)
    assert meta["reliability.ag"]["n"]["10000"] == 1000
    assert meta["generality.ag"]["n"]["64"] == 3 * 64
    assert meta["reliability.tf"]["max_tokens"] is None
    assert "forms" not in meta  # none were asked
    nothing = Pair(math.nan, math.nan)
    asked = metric_meta([dataclasses.replace(cells[0], locality=nothing, natural={}, forced={})])
    assert "reliability.ag" in asked
    assert not asked.keys() & {"locality.ag", "locality.tf", "natural.exact", "forced.success"}


def test_the_command_line_has_what_is_no_default_and_no_folders(tmp_path: Path) -> None:
    words = ["benchmark", "--data", "zsre", "--path", f"{tmp_path}/zsre.json", "--out", "here/out"]
    words += ["--edits", "64", "256", "--methods", f"meg,ft={tmp_path}/ft.yaml", "--plots"]
    words += ["--model", str(tmp_path), "--encoder", "org/encoder", "--seeds", "3"]
    words += ["--set", f"encoder_name={tmp_path}/bert", "--set", "seed=1", "--sequential"]
    words += ["--set", "api_key=secret"]
    line = command_line(build_parser().parse_args(words))
    assert line == (
        f"meg-editor benchmark --model {tmp_path.name} --encoder org/encoder "
        "--set encoder_name=bert --set seed=1 --data zsre --path zsre.json --edits 64 256 "
        "--out here/out --plots --methods meg,ft=ft.yaml --sequential 1"
    )
    build_parser().parse_args(line.split()[1:])
    long = f"prompt_template=/no_think {{}} yes/no{300 * '.'}"  # no file can have such a name
    options = build_parser().parse_args(["benchmark", "--data", "x", "--out", "o", "--set", long])
    assert shlex.split(command_line(options))[3] == long


def test_a_result_names_the_commit_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkout; an installed package has its version alone."""
    monkeypatch.setattr(meg_editor, "__file__", str(tmp_path / "meg_editor" / "__init__.py"))
    assert versions()["meg_editor"] == meg_editor.__version__

    def git(*words: str) -> str:
        names = [word for name in ("name", "email") for word in ("-c", f"user.{name}=x")]
        command = ["git", "-C", str(tmp_path), *names, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    assert versions()["meg_editor"] == meg_editor.__version__  # no commit yet
    (tmp_path / "code.py").write_text("1", "utf-8")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert versions()["meg_editor"] == f"{meg_editor.__version__}+{commit}"
    (tmp_path / "code.py").write_text("2", "utf-8")
    assert versions()["meg_editor"] == f"{meg_editor.__version__}+{commit}.dirty"
