"""Files are written whole, and JSON stays JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from meg_editor.runtime.text_files import write_json, write_text


def test_lists_of_numbers_take_one_line_and_nothing_else_changes(tmp_path: Path) -> None:
    value = {
        "numbers": [1, -2.5, 3e-9],
        "nested": [[1, 2], [3]],
        "empty": [],
        "mixed": [1, "a", None],
        "text": 'a [ 1,  2 ] "quoted" [3]\n[ 4 ]',
    }
    path = tmp_path / "folder" / "value.json"
    write_json(path, value)
    text = path.read_text("utf-8")
    assert json.loads(text) == value
    assert '"numbers": [1, -2.5, 3e-09]' in text and text.endswith("}\n")
    assert len(text.splitlines()) == 14


def test_an_interruption_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text("utf-8") == "old"


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", {"score": math.nan, "seeds": (1.0, math.nan)})
    text = (tmp_path / "report.json").read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {"score": None, "seeds": [1.0, None]}
