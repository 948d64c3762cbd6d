"""Random sequences of live changes lead to the model that is built of the resulting edits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from campaigns.live_sequences import Remembered, Sequences, reference
from conftest import OTHERS, PROMPTS
from synthetic_neurons import Collector, neuron_of

from meg_editor.edits import live
from meg_editor.edits.edit import edit_id
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest

MakeModel = Callable[..., MeGModel]


@pytest.fixture
def make(
    make_meg_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Sequences]:
    """Sequences of a tiny model whose router takes some prompts for others."""

    def make(**settings: Any) -> Sequences:
        fitted = make_meg_model("bank", **settings)
        fitted.gate.threshold.fill_(0.9)
        pool = [
            EditRequest(prompt, target, prompt.split()[-2])
            for prompt in PROMPTS
            for target in ("Lima", "Oslo")
        ]
        known = [*pool, *fitted.edits]
        neurons = {edit_id(fact): neuron_of(fact, fitted.spec.size) for fact in known}
        fitted.generator.neurons = torch.stack([neurons[e.id] for e in fitted.edits]).half()
        monkeypatch.setattr(live, "collect", Remembered(neurons))
        others = [*OTHERS, *(f"Say: {prompt}" for prompt in PROMPTS[:6])]
        return Sequences(fitted, pool, others, neurons, tmp_path)

    return make


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_short_sequences(make: Callable[..., Sequences], weight: float) -> None:
    """`python tests/campaigns/live_sequences.py` runs 200 on the reference model."""
    count = make(gate_state_weight=weight).run(10)
    assert count.tried == 10 and not count.failures


def test_sequences_of_the_reference_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sequences = reference(tmp_path, Collector())
    monkeypatch.setattr(live, "collect", Remembered(sequences.neurons))
    count = sequences.run(2, seed=7)
    assert count.tried == 2 and not count.failures


def test_differences_are_found(make: Callable[..., Sequences]) -> None:
    sequences, rng = make(), random.Random(0)
    model = sequences.fitted.fork()
    edits = {edit.id: edit for edit in model.edits}
    assert sequences.differences(model, edits, rng) == ""
    first = model.edits[0]
    fewer = {each: edit for each, edit in edits.items() if each != first.id}
    assert sequences.differences(model, fewer, rng) == "other ids"
    sequences.neurons = {**sequences.neurons, first.id: torch.zeros(model.spec.size)}
    assert sequences.differences(model, edits, rng) == "other neurons"
    model.gate.threshold.fill_(2.0)
    sequences.fitted.gate.threshold.fill_(2.0)
    model.index.anchors[0] = model.index.anchors[1]
    sequences.neurons = {**sequences.neurons, first.id: model.edition.rows([0]).neurons[0].float()}
    assert sequences.differences(model, edits, rng) == "other anchors"
