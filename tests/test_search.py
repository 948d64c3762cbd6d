"""Settings of baselines are chosen on calibration facts, with as many trials for each."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from meg_editor import MeGHyperParams, load_model
from meg_editor.baselines.core.settings import FittingHyperParams, LayerHyperParams
from meg_editor.baselines.registry import BASELINES, Baseline
from meg_editor.benchmark.search import SearchMaterial, Trial, best_of, proposal, search
from meg_editor.cli.main import main
from meg_editor.config.settings import setting
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.world.requests import calibration_requests
from meg_editor.evaluation import questions_of
from meg_editor.requests.prompts import PromptReader

WEIGHT = "model.norm.weight"


@dataclasses.dataclass
class ScaleHyperParams(FittingHyperParams):
    """Of a method which multiplies a weight: 1 keeps every answer, -1 breaks all."""

    alg_name: str = setting("Scale", "Always Scale.")
    factor: float = setting(1.0, "What the weight is multiplied by.")


def scale(model: Any, tok: Any, requests: Any, hparams: Any, **_: Any) -> Any:
    if hparams.factor == 0:
        raise FloatingPointError("nothing would be left")
    if hparams.factor == 7:
        raise KeyError("seven")
    weight = model.get_parameter(WEIGHT)
    old = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(hparams.factor)
    return model, {WEIGHT: old}


def scaling(*factors: float) -> Baseline:
    first = {"factor": factors[0]}
    return Baseline(scale, ScaleHyperParams, lambda depth: {"factor": factors}, {}, first)


@pytest.fixture(scope="module")
def material() -> tuple[Any, ...]:
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    cases = [EvaluationCase.from_request(fact) for fact in calibration_requests(count=4)]
    return model, tokenizer, cases, questions_of(model, tokenizer, cases, PromptReader(tokenizer))


def run(baseline: Baseline, material: tuple[Any, ...], out: Path, said: list[str]) -> Any:
    trials = search(
        "scale", baseline, SearchMaterial(*material, {"seed": 3}, {}), 3, out, said.append
    )
    return best_of("scale", baseline, trials, {"seed": 3}), trials


def test_the_best_trial_wins_and_failures_are_reported(
    material: tuple[Any, ...], tmp_path: Path
) -> None:
    said: list[str] = []
    hparams, trials = run(scaling(-1.0, 1.0, 0.0), material, tmp_path, said)
    assert hparams == ScaleHyperParams(seed=3, factor=1.0)
    by_factor = {trial.settings["factor"]: trial for trial in trials}
    # Neither says a target (Score 0): what else they get right decides.
    assert by_factor[1.0].rank > by_factor[-1.0].rank > by_factor[0.0].rank == -1
    assert by_factor[1.0].metrics[4] == 100 > by_factor[-1.0].metrics[4]
    assert by_factor[0.0].failure == "nothing would be left" and by_factor[0.0].score is None
    assert len(said) == 3 and sum("nothing would be left" in line for line in said) == 1


def test_no_failure_of_a_method_ends_a_search(material: tuple[Any, ...], tmp_path: Path) -> None:
    said: list[str] = []
    hparams, trials = run(scaling(1.0, 7.0), material, tmp_path, said)
    assert hparams.factor == 1.0
    assert [trial.failure for trial in trials] == [None, "KeyError: 'seven'"]


def test_a_score_of_nothing_does_not_hide_the_other_metrics() -> None:
    """A trial which learns all and changes all is worth more than one which does nothing."""
    inert = Trial({}, 0.0, [0.0, 9.4, 0.0, 12.0, 90.6, 99.2], 1.0)
    learns = Trial({}, 0.0, [98.0, 99.0, 29.0, 65.0, 0.0, 38.0], 1.0)
    fair = Trial({}, 3.0, [75.0, 84.9, 34.4, 64.7, 0.6, 53.9], 1.0)
    assert learns.rank > inert.rank and fair.rank > inert.rank
    assert Trial({}, 50.0, [50.0] * 6, 1.0).rank == pytest.approx(50)


def test_a_search_resumes(
    material: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = scaling(-1.0, 1.0, 0.5)
    first = run(baseline, material, tmp_path, [])
    path = tmp_path / "search" / "scale.json"
    retained = json.loads(path.read_text())
    path.write_text(json.dumps({**retained, "trials": retained["trials"][:2]}))
    said: list[str] = []
    assert run(baseline, material, tmp_path, said)[0] == first[0]
    assert len(said) == 1  # the third trial alone
    assert run(baseline, material, tmp_path, said) == (
        first[0],
        run(baseline, material, tmp_path, [])[1],
    )
    run(scaling(-1.0, 1.0), material, tmp_path, said)
    assert len(said) == 3  # another space: all of it again
    model, tokenizer, *facts = material
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(9)
    run(scaling(-1.0, 1.0), (model, tokenizer, *facts), tmp_path, said)
    assert len(said) == 5  # answers that end elsewhere: all of it again
    asked = [dataclasses.replace(case, paraphrases=("Again?",)) for case in facts[0]]
    run(scaling(-1.0, 1.0), (model, tokenizer, asked, facts[1]), tmp_path, said)
    assert len(said) == 7  # other questions
    monkeypatch.setattr("meg_editor.benchmark.search.package_digest", lambda: "changed")
    run(scaling(-1.0, 1.0), (model, tokenizer, asked, facts[1]), tmp_path, said)
    assert len(said) == 9  # other code
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged.*delete it to search again"):
        run(baseline, material, tmp_path, said)


def test_nothing_is_chosen_where_every_trial_fails(
    material: tuple[Any, ...], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="scale: every trial failed, .*: nothing would be left"):
        run(scaling(0.0), material, tmp_path, [])


def proposals(
    space: Any, count: int, score: Callable[[Any], float | None], first: Any = None
) -> list[Any]:
    """What is tried where the metrics would be `score`."""
    trials: list[Trial] = []
    while (settings := proposal(space, trials, count, first)) is not None:
        value = score(settings)
        trials.append(Trial(settings, value, [] if value is None else [value], 0.0))
    return [trial.settings for trial in trials]


def test_the_first_half_is_spread_and_the_second_stays_near_the_best() -> None:
    space = {"a": [1, 2, 3, 4], "b": [10, 20, 30, 40], "c": [100, 200]}

    def score(settings: dict[str, Any]) -> float:
        return 999 - abs(settings["a"] - 3) - abs(settings["b"] - 20) - settings["c"]

    tried = proposals(space, 8, score)
    assert tried == proposals(space, 8, score)
    assert len({tuple(settings.values()) for settings in tried}) == len(tried) == 8
    for name, values in space.items():  # a Latin square of the first four
        assert {settings[name] for settings in tried[:4]} == set(values)
    for count in range(4, 8):
        best = max(tried[:count], key=score)
        assert sum(tried[count][name] != best[name] for name in space) == 1
    assert score(max(tried, key=score)) > score(max(tried[:4], key=score))


def test_a_space_ends_and_failures_lead_nowhere() -> None:
    space = {"a": [1, 2], "b": [1, 2]}
    every = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2)]
    tried = proposals(space, 9, lambda s: None if s["a"] == 1 else 1.0)
    assert sorted(tried, key=every.index) == every
    assert proposals(space, 0, lambda s: 1.0) == []


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("depth", [2, 6, 32])
def test_spaces_hold_settings_which_exist(
    name: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = BASELINES[name]
    model: Any = SimpleNamespace()
    monkeypatch.setattr("meg_editor.baselines.registry.count_layers", lambda model: depth)
    layers = [depth // 2]
    monkeypatch.setattr(LayerHyperParams, "layers_of", lambda self, model: self.layers or layers)
    first, space = baseline.tried(model)
    trials = proposals(space, 20, lambda settings: 0.0, first)
    assert trials[0] == first  # the authors' settings
    assert first.get("layers", layers) == layers
    assert first.items() >= baseline.published.items()
    assert all(first[name] in values for name, values in space.items())
    assert 1 < len(trials) <= 20
    for trial in trials:
        hparams = baseline.hparams({"prompt_template": "Q: {}", "nothing": 1, **trial})
        assert hparams.prompt_template == "Q: {}"
        assert all(getattr(hparams, key) == value for key, value in trial.items())
        assert all(getattr(hparams, key) == value for key, value in baseline.fixed.items())
        assert max(getattr(hparams, "layers", [0])) < depth


def test_the_command_searches_and_records_it(tmp_path: Path, capsys: Any) -> None:
    options = ["benchmark", "--data", "reference", "--edits", "3", "--seeds", "1"]
    options += ["--trials", "2", "--trial-edits", "3", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*options, "--methods", "unedited,locft,retrieval"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: len(trials) for name, trials in report["searches"].items()} == {
        "locft": 2,
        "retrieval": 2,
    }
    cells = {cell["method"]: cell for cell in report["cells"]}
    best = max(report["searches"]["locft"], key=lambda trial: Trial(**trial).rank)
    assert cells["locft"]["settings"].items() >= best["settings"].items()
    assert "| retrieval |" in capsys.readouterr().out
    again = [*options, "--settings-from", str(tmp_path / "report.json"), "--out"]
    assert main([*again, str(tmp_path / "again"), "--methods", "locft"]) == 0
    assert "trial" not in capsys.readouterr().out
    same = json.loads((tmp_path / "again" / "report.json").read_text())
    assert same["searches"] == {"locft": report["searches"]["locft"]}
    assert same["cells"][0]["settings"] == cells["locft"]["settings"]
    cell = tmp_path / "cells" / "reference-locft-3-0.json"
    for path in (cell, tmp_path / "nowhere.json"):
        assert main([*options, "--settings-from", str(path), "--methods", "locft"]) == 2
        assert "expected the report.json of a benchmark" in capsys.readouterr().err
    for wrong, message in (
        ("easyedit:ROME", "expected easyedit: and one of"),
        ("memit=nowhere.yaml", "nowhere.yaml"),
    ):
        assert main([*options, "--methods", wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["benchmark", "--data", "zsre", "--out", str(tmp_path)]) == 2
    assert "--path: zsre needs the file" in capsys.readouterr().err
    for command in ("benchmark", "tables"):
        assert main([command, "--data", "nosuch", "--out", str(tmp_path / "none")]) == 2
        assert "--data: expected one of" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_method_which_always_fails_does_not_cost_the_others_their_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("no luck")

    monkeypatch.setitem(BASELINES, "locft", dataclasses.replace(BASELINES["locft"], apply=fail))
    options = ["benchmark", "--data", "reference", "--edits", "3", "--seeds", "1"]
    options += ["--trials", "2", "--trial-edits", "3", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*options, "--methods", "locft,unedited"]) == 0
    assert "left out: locft: every trial failed, the last with: no luck" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert [cell["method"] for cell in report["cells"]] == ["unedited"]
    assert [trial["failure"] for trial in report["searches"]["locft"]] == ["no luck"] * 2
    again = [*options, "--settings-from", str(tmp_path / "report.json")]
    assert main([*again, "--methods", "locft,unedited"]) == 0
    assert "left out: locft: every trial failed" in capsys.readouterr().out
    assert main([*options, "--methods", "locft"]) == 2
    assert "no method can be measured" in capsys.readouterr().err
