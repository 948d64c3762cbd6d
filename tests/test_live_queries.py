"""Queries under way, copies and threads, while edits come and go."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from conftest import PROMPTS, at_once
from live_facts import facts, state
from synthetic_neurons import Collector, neuron_of
from torch import Tensor

from meg_editor.edits import live
from meg_editor.model.meg_model import MeGModel


@pytest.fixture
def tiny(make_meg_model: Callable[..., MeGModel], monkeypatch: pytest.MonkeyPatch) -> MeGModel:
    """Six edits with random neurons; only an edited prompt itself is an edit."""
    monkeypatch.setattr(live, "collect", Collector())
    model = make_meg_model("bank")
    model.gate.threshold.fill_(0.999)
    return model


def neurons(model: MeGModel, text: str) -> Tensor:
    found = model.neurons(model.route(text))
    assert found is not None
    return found[0]


def test_a_query_under_way_keeps_its_edits(tiny: MeGModel) -> None:
    expected = {row: neurons(tiny, PROMPTS[row]) for row in range(6)}
    routing = tiny.route(PROMPTS[:6])
    tiny.remove([PROMPTS[0], PROMPTS[3]])
    tiny.add(facts(8))
    found = tiny.neurons(routing)
    assert found is not None and all(torch.equal(found[row], expected[row]) for row in range(6))
    with tiny.routed(PROMPTS[1]):
        tiny.remove(PROMPTS[1])
        assert tiny.answer(PROMPTS[8], 4) == tiny.answer(PROMPTS[8], 4)
    new = neuron_of(facts(8)[0], tiny.spec.size).half().float()
    assert torch.equal(neurons(tiny, PROMPTS[8]), new)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, MeGModel.fork], ids=["deepcopy", "fork"])
def test_copies_are_independent(tiny: MeGModel, twin_of: Callable[[MeGModel], MeGModel]) -> None:
    tiny.add(facts(8))
    ours = state(tiny)
    twin = twin_of(tiny)
    twin.remove([PROMPTS[0], PROMPTS[8]])
    twin.add(facts(9))
    assert state(tiny) == ours
    theirs = state(twin)
    tiny.undo()
    tiny.remove(PROMPTS[1])
    assert state(twin) == theirs and (twin.base is tiny.base) == (twin_of is MeGModel.fork)
    assert twin.route(PROMPTS[1])[0].is_edit and not tiny.route(PROMPTS[1])[0].is_edit


def test_threads_which_change_at_once(tiny: MeGModel) -> None:
    """All succeed, one after another; who asks meanwhile sees whole editions."""
    expected = {row: neurons(tiny, PROMPTS[row]) for row in range(2)}
    done = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            while not done.is_set():
                routing = tiny.route(PROMPTS[:2])
                found = tiny.neurons(routing)
                assert found is not None and routing.is_edit.all()
                assert all(torch.equal(found[row], expected[row]) for row in expected)
            return
        try:
            for target in ("Lima", "Oslo", "Rome"):
                tiny.add(facts(7 + number, target=target), on_conflict="replace")
            tiny.remove(PROMPTS[1 + number])
        finally:
            if number == 3:
                done.set()

    at_once(4, work)
    assert {edit.prompt for edit in tiny.edits} == {
        *(PROMPTS[row] for row in (0, 1, 5, 8, 9, 10)),
    }
    assert [change.number for change in tiny.history()] == list(range(1, 13))
    for row in (8, 9, 10):
        rome = neuron_of(facts(row, target="Rome")[0], tiny.spec.size)
        assert torch.equal(neurons(tiny, PROMPTS[row]), rome.half().float())
