"""examples/what_methods_do.py: a row per method, and nothing of an earlier run."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meg_editor import MeGHyperParams, load_model
from meg_editor.baselines.scen import SCENHyperParams, apply_scen_to_model
from meg_editor.benchmark.methods import Method
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases

SCRIPT = Path(__file__).parents[1] / "examples" / "what_methods_do.py"


def test_every_method_has_a_row_and_the_base_is_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
    model.save_pretrained(tmp_path / "base")  # as a run of another model left it behind
    path = tmp_path / "base" / "model.safetensors"
    save_file({n: torch.zeros_like(v) for n, v in load_file(path).items()}, path, {"format": "pt"})
    settings = SCRIPT.parent / "results" / "reference" / "world" / "report.json"
    words = ["--settings-from", str(settings), "--methods", "unedited,retrieval"]
    words += ["--edits", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = json.loads((tmp_path / "what_methods_do.json").read_text("utf-8"))["rows"]
    assert rows.keys() == {"unedited", "retrieval"}
    for row in rows.values():
        assert row["base"] == "untouched" and row["threads"].startswith("0 of ")
        assert row["MoE"] and row["nf4"]
    # A memory takes more edits, as under `meg-editor benchmark --sequential`.
    assert rows["retrieval"]["later"] != "refused" and rows["retrieval"]["KB per edit"] > 0
    assert rows["unedited"]["edits"] == 0 and rows["unedited"]["neighbours"] == 100
    assert load_file(path)["model.norm.weight"].any()
    assert "| retrieval |" in capsys.readouterr().out


def test_settings_of_a_deeper_model_edit_the_mixture_at_layers_it_has() -> None:
    """Else "refused" says something of the settings, not of the method."""
    example = runpy.run_path(str(SCRIPT))
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    cases = edit_cases(load_world(), 2, seed=0)
    probes = example["Probes"](model, tokenizer, cases, [], {})
    deep = Method("scen", apply_scen_to_model, SCENHyperParams(layers=[18]))
    assert probes.learned(deep, example["mixture"](tokenizer)).endswith(" of 2")


def test_layers_of_settings_of_others_are_left_as_they_are() -> None:
    """EasyEdit's have no way to change them: its method says what it lacks."""
    example = runpy.run_path(str(SCRIPT))
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    probes = example["Probes"](model, tokenizer, edit_cases(load_world(), 2, seed=0), [], {})

    def apply(*_: Any, **__: Any) -> Any:
        raise ValueError("layer 18 does not exist")

    deep = Method("easyedit:MEMIT", apply, SimpleNamespace(layers=[18]))
    assert probes.learned(deep, example["mixture"](tokenizer)) == "refused"


def test_a_data_set_without_its_file_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--data", "zsre"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "--path: zsre needs the file" in capsys.readouterr().err
