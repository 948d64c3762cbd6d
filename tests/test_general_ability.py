"""examples/general_ability.py: tasks of the harness before and after edits."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: [lm-eval]")
EXAMPLES = Path(__file__).parents[1] / "examples"


def test_edits_that_are_routed_change_no_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = EXAMPLES / "results" / "reference" / "world" / "report.json"
    words = ["--settings-from", str(settings), "--methods", "meg,ft,retrieval"]
    words += ["--edits", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["general_ability.py", *words])
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / "general_ability.py"), run_name="__main__")
    content = json.loads((tmp_path / "general_ability.json").read_text("utf-8"))
    assert content["command"] == (
        "python examples/general_ability.py --settings-from report.json "
        f"--methods meg,ft,retrieval --edits 2 --out {tmp_path.name}"
    )
    rows = content["rows"]
    assert rows.keys() == {"unedited", "meg", "ft"}
    assert "left out: retrieval" in capsys.readouterr().out
    assert rows["meg"]["edits"] == rows["ft"]["edits"] == 100
    assert rows["meg"]["changed"] == 0
    assert rows["ft"]["changed"] > 50
    tasks = ("sums", "agreement", "orders", "opposites", "capitals")
    assert all(rows["meg"][task] == rows["unedited"][task] for task in tasks)
