"""examples/cost.py: what it counts is what was computed."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from meg_editor import MeGHyperParams, load_model
from meg_editor.benchmark import Method
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("cost")


def test_operations_seconds_and_bytes_are_those_of_the_method(cost: Any) -> None:
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    runs: list[list[str]] = []

    class Wider(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            self.base, self.more = base, torch.nn.Parameter(torch.zeros(500))

        def generate(self, **options: Any) -> Any:
            return self.base.generate(**options)

        @property
        def device(self) -> torch.device:
            return self.base.device

    def apply(model: Any, tok: Any, requests: Any, hparams: Any, **_: Any) -> Any:
        if not runs:
            time.sleep(0.5)  # what is done once
        runs.append([request["prompt"] for request in requests])
        weight = torch.ones(32, 32, requires_grad=True)
        for _ in requests:
            (torch.ones(16, 32) @ weight).sum().backward()  # two products: forward, and of weight
        return Wider(model), {}

    cases = edit_cases(load_world(), 7, seed=0)
    row = cost.Meter(model, tokenizer, {}).row(Method("mine", apply), cases, 4)
    assert [len(prompts) for prompts in runs] == [1, 1, 4, 1]
    assert len({prompt for prompts in runs for prompt in prompts}) == 7
    assert row["GFLOP/edit"] == pytest.approx(2 * 2 * 16 * 32 * 32 / 1e9)
    assert row["KB/edit"] == pytest.approx(4 * 500 / 4 / 1000)
    assert 0.4 < row["once s"] < 5 and row["of floor"] > 0 <= row["peak MB"]
    assert row["edits"] == row["paraphrases"] == 0


def test_methods_are_measured_in_one_run(
    cost: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = EXAMPLES / "results" / "reference" / "world" / "report.json"
    words = ["--settings-from", str(settings), "--methods", "meg,ft", "--edits", "4"]
    monkeypatch.setattr(sys, "argv", ["cost.py", *words, "--out", str(tmp_path)])
    cost.main()
    rows = json.loads((tmp_path / "cost.json").read_text("utf-8"))["rows"]
    assert rows.keys() == {"meg", "ft"} and "| meg |" in capsys.readouterr().out
    assert rows["meg"]["edits"] == rows["ft"]["edits"] == 100
    assert rows["meg"]["KB/edit"] > 0 == rows["ft"]["KB/edit"]
    assert min(rows["meg"]["GFLOP/edit"], rows["ft"]["GFLOP/edit"]) > 0
