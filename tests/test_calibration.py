"""Calibrated Generality and Locality are those of a model really edited so."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from meg_editor import MeGHyperParams, load_model
from meg_editor.collection.collect import collect
from meg_editor.data.world.requests import (
    calibration_requests,
    pseudo_requests,
    sweep_requests,
)
from meg_editor.edits.edit import edits_of
from meg_editor.edits.edition import Edition
from meg_editor.fitting import calibration
from meg_editor.fitting.calibration import (
    calibrate_on_held_out,
    one_standard_error_rule,
    state_weights,
    without_subjects,
)
from meg_editor.fitting.context import FitContext
from meg_editor.fitting.gate_stage import GateStage
from meg_editor.fitting.judges import with_new_targets
from meg_editor.generators import NeuronBank
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.reference import resolve_model_name
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Calibration, FamiliarityGate, SimilarityGate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.router import build_index

HPARAMS = MeGHyperParams.preset("default", generator="bank", familiarity_epochs=30)
FACTS = calibration_requests()[:24]
EDITS = [edit for edit in sweep_requests(40, 5) if edit.prompt not in {f.prompt for f in FACTS}][:6]
BACKGROUND = [fact.prompt for fact in pseudo_requests()[:50]]


@pytest.fixture(scope="module")
def parts() -> Any:
    model, tokenizer = load_model(HPARAMS)
    encoder = TextEncoder.from_pretrained(resolve_model_name(HPARAMS.encoder_name))
    return model, tokenizer, NeuronSpec.from_model(model, HPARAMS.layer), encoder


def calibrated(
    parts: Any, gate: Any, neurons: Tensor | None, settings: MeGHyperParams, facts: Any = FACTS
) -> Calibration:
    """Without neurons: the quick way."""
    model, tokenizer, _, encoder = parts
    context = FitContext.of(model, tokenizer, EDITS, settings, [], facts)
    usual = states_of(parts).usual(BACKGROUND)
    return calibrate_on_held_out(context, settings, encoder, gate, neurons, 0.0, usual)


def states_of(parts: Any) -> HiddenStateReader:
    model, tokenizer, spec, _ = parts
    return HiddenStateReader(model, tokenizer, spec, PromptReader(tokenizer))


def other_queries() -> list[str]:
    """All but paraphrases of the facts which are edited for calibration."""
    known = {text for fact in FACTS[::2] for text in (fact.prompt, *fact.rephrases)}
    others = [text for fact in FACTS[1::2] for text in (fact.prompt, *fact.rephrases)]
    others += [text for fact in FACTS for text in fact.locality_prompts]
    return [text for text in others if text not in known]


def test_what_is_edited_is_not_to_be_left_alone(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a fact to calibrate on has an edit's prompt among its neighbours."""
    asked: list[str] = []
    outcomes = calibration._Sweep.outcomes

    def noted(sweep: Any, queries: Any) -> Any:
        asked.extend(queries.texts)
        return outcomes(sweep, queries)

    monkeypatch.setattr(calibration._Sweep, "outcomes", noted)
    neighbours = (EDITS[0].prompt, "Who wrote Emma?")
    facts = [dataclasses.replace(fact, locality_prompts=neighbours) for fact in FACTS[:2]]
    calibrated(parts, SimilarityGate(), None, HPARAMS, facts)
    assert "Who wrote Emma?" in asked and EDITS[0].prompt not in asked


@pytest.mark.parametrize("weight", [0.5, None])
@pytest.mark.parametrize("thorough", [True, False])
def test_calibrated_shares_are_those_of_a_model_edited_so(
    parts: Any, weight: float | None, thorough: bool
) -> None:
    model, tokenizer, spec, encoder = parts
    gate = SimilarityGate()
    before = copy.deepcopy(gate.state_dict())
    settings = dataclasses.replace(HPARAMS, gate_state_weight=weight)
    neurons = torch.zeros(len(EDITS), spec.size) if thorough else None
    result = calibrated(parts, gate, neurons, settings)
    assert weight is None or result.state_weight == weight
    assert gate.state_dict() == before
    assert -1 < result.threshold <= 1 and result.balance > (0.9 if thorough else 0.8)

    inside = FACTS[::2]  # more than there are edits, which are therefore left out
    neurons = collect(model, tokenizer, spec, inside, HPARAMS).neurons
    bank = NeuronBank.build(HPARAMS, encoder.dimension, spec.size, len(inside))
    states = states_of(parts)
    settings = dataclasses.replace(HPARAMS, gate_state_weight=result.state_weight)
    index = build_index(inside, encoder, states, states.usual(BACKGROUND), settings)
    bank.fit(index.anchors, neurons)
    paraphrases = [(row, text) for row, fact in enumerate(inside) for text in fact.rephrases]
    others = other_queries()
    for threshold in (-1.0, result.threshold):
        gate = SimilarityGate(threshold)
        edition = Edition(edits_of(inside), gate, index, bank)
        edited = MeGModel(model, tokenizer, HPARAMS, spec, encoder, edition)
        if thorough:
            given = edited.answer([text for _, text in paraphrases])
            rows = zip(given, paraphrases, strict=True)
            right = [answer == inside[row].target_new for answer, (row, _) in rows]
            answers = greedy_answers(model, tokenizer, others, 32)
            retained = [a == b for a, b in zip(answers, edited.answer(others), strict=True)]
        else:
            routes = zip(edited.route([text for _, text in paraphrases]), paraphrases, strict=True)
            right = [routed.is_edit and routed.edit == row for routed, (row, _) in routes]
            retained = [not routed.is_edit for routed in edited.route(others)]
        at = int((result.thresholds - threshold).abs().argmin())
        assert float(result.generality[at]) == pytest.approx(sum(right) / len(right))
        assert float(result.locality[at]) == pytest.approx(sum(retained) / len(retained))


def test_one_of_the_weights_of_the_states_is_taken(parts: Any) -> None:
    result = {}
    for weight in (None, 0.0, 0.25, 0.5):
        settings = dataclasses.replace(HPARAMS, gate_state_weight=weight)
        result[weight] = calibrated(parts, SimilarityGate(), None, settings)
    chosen = result.pop(None)
    paraphrases = sum(len(fact.rephrases) for fact in FACTS[::2])
    given = one_standard_error_rule(list(result.values()), paraphrases, len(other_queries()))
    assert chosen.state_weight == given.state_weight
    assert torch.equal(chosen.generality, given.generality)
    assert torch.equal(chosen.thresholds, given.thresholds)


def test_the_quick_way_asks_nothing(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("collect", "answers_with", "batched_answers"):
        monkeypatch.setattr(f"meg_editor.fitting.judges.{name}", lambda *_: pytest.fail("asked"))
    assert calibrated(parts, SimilarityGate(), None, HPARAMS).balance > 0.8


@pytest.mark.parametrize(
    ("gate", "edits", "changes", "thorough", "reusable"),
    [
        ("similarity", 2, {}, False, True),
        ("similarity", 3, {}, True, False),
        ("familiarity", 2, {}, True, False),
        ("similarity", 2, {"gate_calibration": "thorough"}, True, True),
        ("similarity", 3, {"gate_calibration": "quick"}, False, False),
        ("similarity", 2, {"gate_threshold": 0.8}, False, False),
        ("similarity", 2, {"gate_threshold": 0.8, "gate_state_weight": 0.5}, False, True),
    ],
)
def test_few_edits_are_calibrated_quickly_and_for_all_later_fits(
    parts: Any, gate: str, edits: int, changes: dict[str, Any], thorough: bool, reusable: bool
) -> None:
    model, tokenizer, spec, encoder = parts
    settings = dataclasses.replace(HPARAMS, gate=gate, **changes)
    context = FitContext.of(model, tokenizer, EDITS[:edits], settings, [], FACTS[:4])
    stage = GateStage(context, encoder, "encoder", torch.zeros(edits, spec.size), 0.0)
    assert (stage.thorough, stage.reusable) == (thorough, reusable)


def sweep(best: float, weight: float) -> Calibration:
    """Of one threshold, where Generality is `best` and Locality 1."""
    shares = (torch.tensor([value]) for value in (0.5, best, 1.0))
    return Calibration(*shares, threshold=0.5, state_weight=weight)


def test_between_weights_which_chance_cannot_tell_apart_the_whole_sweep_decides() -> None:
    """Of 100 paraphrases 96 right: the standard error is sqrt(0.96 * 0.04 / 100) = 0.0196."""
    assert sweep(0.96, 0).error(100, 50) == pytest.approx(0.0098, abs=1e-4)

    def taken(*shares: float) -> float:
        weighed = zip((0.0, 0.25, 0.5), shares, strict=True)
        result = [sweep(share, weight) for weight, share in weighed]
        return one_standard_error_rule(result, 100, 50).state_weight

    assert taken(0.945, 0.96, 0.955) == 0.5
    assert taken(0.955, 0.96, 0.945) == 0.0
    assert taken(0.96, 0.96, 0.96) == 0.0  # states take time to read
    assert taken(0.90, 0.96, 0.93) == 0.25
    assert taken(0.90, 0.93, 0.96) == 0.5
    assert one_standard_error_rule([sweep(0.9, 0.4)], 100, 50).state_weight == 0.4


def test_a_name_that_weighs_much_leaves_less_to_the_states() -> None:
    settings = MeGHyperParams(gate_name_weight=0.6)
    assert state_weights(settings) == (0.0, 0.25)
    assert state_weights(MeGHyperParams(gate_state_weight=0.1)) == (0.1,)


def test_a_gate_which_learns_its_edits_is_calibrated_on_a_copy(parts: Any) -> None:
    _, _, spec, encoder = parts
    gate = FamiliarityGate.build(HPARAMS, encoder.dimension)
    before = copy.deepcopy(gate.state_dict())
    neurons = torch.zeros(len(EDITS), spec.size)
    result = calibrated(parts, gate, neurons, HPARAMS)
    assert result.threshold <= 0  # minus an entropy
    assert all(torch.equal(before[name], value) for name, value in gate.state_dict().items())


def test_what_the_model_answers_anyway_gets_another_target() -> None:
    facts = [EditRequest(f"question {n}", f"answer {n}") for n in range(3)]
    answers = ["answer 0", "something", "answer 2"]
    assert [f.target_new for f in with_new_targets(facts, answers)] == [
        "answer 1",
        "answer 1",
        "answer 0",
    ]
    same = [dataclasses.replace(fact, target_new="answer") for fact in facts]
    assert with_new_targets(same, ["answer"] * 3) == same  # there is no other target


def test_facts_without_rephrases_cannot_calibrate(parts: Any) -> None:
    bare = [dataclasses.replace(fact, rephrases=()) for fact in FACTS]
    with pytest.raises(ValueError, match=r"got 0 and \d+.*gate_threshold"):
        calibrated(parts, SimilarityGate(), None, HPARAMS, bare)


def test_held_out_facts_lack_their_subject_as_often_as_the_edits_do() -> None:
    facts = [EditRequest(f"question {n}", "x", subject="s") for n in range(40)]

    def counts(share: float) -> tuple[int, int]:
        bare = [fact.subject is None for fact in without_subjects(facts, share)]
        return sum(bare[::2]), sum(bare[1::2])  # those which are edited, and the others

    assert [counts(share) for share in (0.0, 1.0, 0.5, 0.25)] == [
        (0, 0),
        (20, 20),
        (10, 10),
        (5, 5),
    ]
