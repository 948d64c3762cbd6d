"""The layer sweep: its counts, against neurons collected and evaluated one by one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from meg_editor import MeGHyperParams, load_model
from meg_editor.cli.main import main
from meg_editor.collection.collect import collect
from meg_editor.collection.layer_sweep import LayerResult, layer_sweep
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases, reference_split, sweep_requests
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.reference import reference_model_path
from meg_editor.requests.request import EditRequest

HPARAMS = MeGHyperParams.preset("default", device="cpu")
LONG = " ".join(["Lima"] * 18)  # 18 tokens: answers to its paraphrases must not end before


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(HPARAMS)


def test_counts_are_those_of_single_facts(loaded: tuple[Any, Any]) -> None:
    facts = sweep_requests(5, 0)
    same = (facts[0].prompt,)
    facts[0] = dataclasses.replace(facts[0], target_new=LONG, rephrases=same)
    (result,) = layer_sweep(*loaded, facts, HPARAMS, [1])
    settings = dataclasses.replace(HPARAMS, layers=[1])
    spec = NeuronSpec.from_hparams(loaded[0], settings)
    correct: dict[str, list[bool]] = {"prompt": [], "rephrases": []}
    neurons = collect(*loaded, spec, facts, settings, retries=0)
    with NeuronHook(loaded[0], spec) as hook:
        for fact, neuron in zip(facts, neurons.neurons, strict=True):
            for kind, prompts in (("prompt", [fact.prompt]), ("rephrases", fact.rephrases)):
                for prompt in prompts:
                    with hook.attached(neuron[None]):
                        (answer,) = greedy_answers(*loaded, [prompt], 48)
                    correct[kind].append(answer == fact.target_new)
    assert correct["prompt"][0] and correct["rephrases"][0]
    assert len(correct["rephrases"]) > 5 and result.layer == 1
    assert result.reliability == pytest.approx(100 * sum(correct["prompt"]) / 5)
    assert result.generality == pytest.approx(
        100 * sum(correct["rephrases"]) / len(correct["rephrases"])
    )
    assert result.steps == pytest.approx(sum(neurons.steps.tolist()) / 5)
    assert result.milliseconds > 0
    bare = [dataclasses.replace(fact, rephrases=()) for fact in facts]
    assert [r.generality for r in layer_sweep(*loaded, bare, HPARAMS, [0, 3])] == [None, None]


def test_a_layer_which_diverges_is_no_end_of_the_others(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(model: Any, tokenizer: Any, spec: NeuronSpec, *options: Any, **named: Any) -> Any:
        if spec.layer == 1:
            raise FloatingPointError("no finite loss")
        return collect(model, tokenizer, spec, *options, **named)

    monkeypatch.setattr("meg_editor.collection.layer_sweep.collect", diverges)
    facts = [EditRequest("The capital of France is", "Lima", rephrases=("France, its capital:",))]
    first, second = layer_sweep(*loaded, facts, HPARAMS, [1, 2])
    assert (first.reliability, first.generality, first.steps) == (0.0, 0.0, 0.0)
    assert second.reliability == 100.0 and second.steps > 0


def test_the_command_tries_settings_on_facts_which_no_evaluation_edits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(model: Any, tokenizer: Any, facts: Any, hparams: Any, layers: Any) -> Any:
        calls.update(facts=facts, steps=hparams.collection_steps)
        return layer_sweep(model, tokenizer, facts, hparams, layers)

    calls: dict[str, Any] = {}
    monkeypatch.setattr("meg_editor.collection.layer_sweep.layer_sweep", kept)
    options = ["--data", "reference", "--count", "4", "--layer", "2"]
    assert main(["layers", *options, "--set", "collection_steps=30"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert "(4 facts, AG, %)" in head and row.split()[:2] == ["2", "100.0"]
    split = reference_split(load_world())
    calibration = {case.request.prompt for case in split.calibration}
    assert {fact.prompt for fact in calls["facts"]} <= calibration and calls["steps"] == 30
    edits = {case.request.prompt for case in edit_cases(load_world(), 1000, 0)}
    assert calibration.isdisjoint(edits)


def test_facts_come_from_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "--data", "reference", "--edits", "facts.csv"]) == 2
    assert "expected --edits or --data, got both" in capsys.readouterr().err


def test_a_data_set_needs_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "--data", "zsre"]) == 2
    assert "--path: zsre needs the file" in capsys.readouterr().err


def test_a_model_of_the_users_own_is_tried_on_real_facts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody but the reference model has heard of made-up people and companies."""
    tried: list[EditRequest] = []

    def measured(_: Any, __: Any, facts: Any, ___: Any, layers: Any) -> list[LayerResult]:
        tried.extend(facts)
        return [LayerResult(layers[0], 50.0, None, 1.0, 1.0)]

    monkeypatch.setattr("meg_editor.collection.layer_sweep.layer_sweep", measured)
    assert main(["layers", "--model", str(reference_model_path()), "--count", "100"]) == 0
    layers = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert layers == ["layer", "0", "1", "2", "3"]
    real = {fact.subject for fact in load_world().facts if not fact.made_up}
    assert len(tried) == 400 and {fact.subject for fact in tried} <= real
    assert main(["layers", "--model", str(reference_model_path()), "--count", "999"]) == 2
    assert "count: expected 0 to 169 (the facts to try), got 999" in capsys.readouterr().err
    tried.clear()
    assert main(["layers", "--count", "100", "--layer", "1"]) == 0
    assert len(tried) == 100 and not {fact.subject for fact in tried} <= real
