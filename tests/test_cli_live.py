"""The commands which change the edits in a folder, one after another, on the reference model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from meg_editor.cli.main import main
from meg_editor.edits import live
from meg_editor.requests.files import read_requests

FRANCE = {"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"}
PERU = {"prompt": "The capital of Peru is", "target_new": "Oslo", "subject": "Peru"}
JAPAN = {"prompt": "The currency of Japan is", "target_new": "the euro", "subject": "Japan"}


def facts(path: Path, *rows: dict[str, str]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("live")
    edits = facts(top / "facts.json", FRANCE)
    assert main(["edit", "--edits", edits, "--out", str(top / "out"), "--device", "cpu"]) == 0
    return top / "out"


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["edits", str(folder), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_edits_come_and_go(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_cpu = [str(folder), "--device", "cpu"]
    assert main(["add", *on_cpu, "--edits", facts(tmp_path / "a.json", PERU, JAPAN)]) == 0
    rows = listed(folder, capsys)
    assert [(row["target_new"], row["by"]) for row in rows] == [
        ("Lima", "fit"),
        ("Oslo", "add"),
        ("the euro", "add"),
    ]
    other = facts(tmp_path / "b.json", {**PERU, "target_new": "Rome"})
    assert main(["add", *on_cpu, "--edits", other]) == 2
    assert rows[1]["id"] in capsys.readouterr().err
    assert main(["replace", *on_cpu, "--edits", other]) == 0
    assert main(["remove", *on_cpu, FRANCE["prompt"], rows[2]["id"]]) == 0
    assert [row["target_new"] for row in listed(folder, capsys)] == ["Rome"]
    assert main(["remove", *on_cpu, "The capital of Fance is"]) == 2
    assert PERU["prompt"] in capsys.readouterr().err  # the nearest
    assert main(["undo", *on_cpu, "--steps", "2"]) == 0
    targets = {row["target_new"] for row in listed(folder, capsys)}
    assert targets == {"Lima", "Oslo", "the euro"}
    assert main(["undo", *on_cpu, "--steps", "5"]) == 2
    capsys.readouterr()
    assert main(["edits", str(folder), "--history"]) == 0
    kinds = [line.split(":")[-2].split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(kinds) == 5  # add, replace, remove, and two undone
    assert main(["compact", *on_cpu]) == 0
    assert not list((folder / "changes").glob("*/log.jsonl"))
    assert len(listed(folder, capsys)) == 3


def test_a_conflict_is_resolved_by_an_option(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message named Python's argument."""
    edits = facts(tmp_path / "d.json", {**FRANCE, "target_new": "Bonn"})
    assert main(["add", str(folder), "--device", "cpu", "--edits", edits]) == 2
    err = capsys.readouterr().err
    assert ": --on-conflict replace takes the new ones, --on-conflict keep keeps both" in err
    assert "on_conflict" not in err


def test_what_is_not_learned_is_named_with_the_way_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    collect = live.collect

    def failing(*arguments: Any) -> Any:
        found = collect(*arguments)
        return dataclasses.replace(found, success=found.success & False)

    monkeypatch.setattr(live, "collect", failing)
    on_cpu = [str(folder), "--device", "cpu"]
    chile = {"prompt": "The capital of Chile is", "target_new": "Oslo", "subject": "Chile"}
    capsys.readouterr()
    assert main(["add", *on_cpu, "--edits", facts(tmp_path / "e.json", chile)]) == 0
    out = capsys.readouterr().out
    (row,) = [row for row in listed(folder, capsys) if row["prompt"] == chile["prompt"]]
    assert f"not learned, in force all the same: {row['id']} '{chile['prompt']}'" in out
    assert f"`meg-editor remove {folder} PROMPT_OR_ID…` takes them out" in out
    capsys.readouterr()
    assert main(["undo", *on_cpu]) == 0
    assert "in force all the same" not in capsys.readouterr().out


def test_a_list_is_a_file_of_edits_and_folders_merge(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = tmp_path / "edits.jsonl"
    rows = listed(folder, capsys)
    listing.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert len(read_requests(listing).requests) == len(rows)
    out = tmp_path / "out"
    only = facts(tmp_path / "c.json", {**JAPAN, "prompt": "The currency of Mexico is"})
    assert main(["edit", "--edits", only, "--out", str(out), "--device", "cpu"]) == 0
    assert main(["merge", str(out), str(folder), "--device", "cpu"]) == 0
    assert len(listed(out, capsys)) == len(rows) + 1
    assert main(["consolidate", str(out), "--device", "cpu"]) == 0


def test_a_missing_folder_is_called_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["edits"], ["undo"], ["remove"]):
        extra = ["x"] if command == ["remove"] else []
        assert main([*command, str(tmp_path / "none"), *extra]) == 2
        assert "none" in capsys.readouterr().err
