"""Live edits: add, replace, remove and undo, one whole edition at a time."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS
from live_facts import facts, state
from synthetic_neurons import Collector

from meg_editor import MeGHyperParams, fit, load_model
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.edits import live
from meg_editor.edits.conflicts import ConflictError, UnknownEditError
from meg_editor.edits.edit import edit_id
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.request import EditRequest, RequestError

CASES = edit_cases(load_world(), 16, 0)
FACTS = [case.request for case in CASES]
FITTED = 8  # of them


@pytest.fixture(scope="module")
def fitted() -> MeGModel:
    """The reference model with the first facts; `fork` it before a change."""
    hparams = MeGHyperParams.preset("default", device="cpu")
    edited, _ = fit(*load_model(hparams), FACTS[:FITTED], hparams)
    return edited


@pytest.fixture
def edited(fitted: MeGModel) -> MeGModel:
    return fitted.fork()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    """Neurons at once; the model answers nonsense with them, but the same every time."""
    monkeypatch.setattr(live, "collect", collector := Collector())
    return collector


@pytest.fixture
def tiny(make_meg_model: Callable[..., MeGModel], collector: Collector) -> MeGModel:
    """Six edits with random neurons; only an edited prompt itself is an edit."""
    model = make_meg_model("bank")
    model.gate.threshold.fill_(0.999)
    return model


def changed(request: EditRequest, target: str) -> EditRequest:
    return dataclasses.replace(request, target_new=target)


def answered(model: MeGModel, rows: range | list[int]) -> list[bool]:
    """Of the facts at `rows`, whether the model gives their targets."""
    answers = model.answer([FACTS[row].prompt for row in rows])
    return [answer == FACTS[row].target_new for row, answer in zip(rows, answers, strict=True)]


# ------------------------------------------------------------------------------- changes


def test_add_replace_remove_and_undo(edited: MeGModel) -> None:
    rows = range(FITTED)
    others = [probe.prompt for case in CASES for probe in case.locality["unrelated"]]
    before = edited.answer(others)
    assert all(answered(edited, rows))

    change = edited.add(FACTS[8:10])
    assert (change.number, change.kind, change.not_learned) == (1, "add", ())
    assert [edit.id for edit in change.added.edits] == [edit_id(fact) for fact in FACTS[8:10]]
    assert all(answered(edited, range(10)))
    last = edited.edits[-1]
    assert (last.by, last.state, last.subject) == ("add", "stored", FACTS[9].subject)
    assert last.when <= change.when and last == EditRequest(
        FACTS[9].prompt, FACTS[9].target_new, FACTS[9].subject
    )

    new = changed(FACTS[2], FACTS[5].target_new)
    change = edited.replace([new])
    assert edited.answer(new.prompt) == [new.target_new]
    assert [edit.id for edit in change.removed.edits] == [edit_id(FACTS[2])]
    assert edited.edits[-1].by == "replace" and len(edited.edits) == 10

    change = edited.remove([FACTS[0].prompt, edit_id(FACTS[8])])
    assert not any(answered(edited, [0, 8])) and len(edited.edits) == 8
    assert edited.answer(FACTS[0].prompt) == edited.answer(FACTS[0].prompt)
    assert edited.answer(others) == before and all(answered(edited, [1, 3, 4, 5, 6, 7, 9]))

    assert [c.number for c in edited.history()] == [1, 2, 3]
    assert [c.number for c in edited.undo()] == [3] and all(answered(edited, [0, 8]))
    assert [c.number for c in edited.undo(2)] == [2, 1]
    assert all(answered(edited, rows)) and not any(answered(edited, [8, 9]))
    assert {edit.id for edit in edited.edits} == {edit_id(fact) for fact in FACTS[:FITTED]}
    assert [(c.kind, c.undoes) for c in edited.history()[3:]] == [
        ("undo", 3),
        ("undo", 2),
        ("undo", 1),
    ]
    with pytest.raises(ValueError, match="undo: no change to take back"):
        edited.undo()
    edited.remove(edit_id(FACTS[1]))
    with pytest.raises(ValueError, match="expected 1 to 1 steps, got 2"):
        edited.undo(2)
    assert "7. remove" in repr(edited.history()[-1])


def test_an_id_stands_for_its_prompt_in_replace(tiny: MeGModel) -> None:
    """It was taken for a prompt: the edit stayed as it was, and a new one joined it."""
    count, edit = len(tiny.edits), tiny.edits[0]
    change = tiny.replace([{"prompt": edit.id, "target_new": "Another"}])
    assert [(e.prompt, e.subject) for e in change.added.edits] == [(edit.prompt, edit.subject)]
    assert [e.id for e in change.removed.edits] == [edit.id] and len(tiny.edits) == count
    new = change.added.edits[0]
    both = [{"prompt": new.id, "target_new": "A"}, {"prompt": new.prompt, "target_new": "B"}]
    with pytest.raises(RequestError, match="different answers"):
        tiny.replace(both)


def test_an_edit_names_itself_and_nothing_else_does(tiny: MeGModel) -> None:
    """An Edit, or a number of steps as text, was an AttributeError or a TypeError."""
    first, second = tiny.edits[:2]
    outdated = EditRequest(first.prompt, "Another", first.subject)
    with pytest.raises(UnknownEditError, match="no edit has the id"):
        tiny.remove(outdated)
    for bad in (7, [first, 7], None, {first: 7}.values()):
        with pytest.raises(RequestError, match="expected an edit, its id or prompt, got"):
            tiny.remove(bad)
    change = tiny.remove([first, second.id])
    assert [edit.id for edit in change.removed.edits] == [first.id, second.id]
    for steps in ("1", None, 1.0, 0):
        with pytest.raises(RequestError, match=f"expected 1 to 1 steps, got {steps!r}"):
            tiny.undo(steps)
    tiny.undo()
    tiny.remove(first)
    assert first not in tiny.edits


def test_a_removed_edit_leaves_no_trace(tiny: MeGModel) -> None:
    """Index, names, neurons and answers are those of a model that never had it."""
    never = copy.deepcopy(tiny)
    tiny.add([EditRequest(PROMPTS[7], "Lima", "Atlantis Borduria Cimmeria")])
    tiny.add(facts(8))
    tiny.remove([PROMPTS[7], PROMPTS[8]])
    assert [edit.id for edit in tiny.edits] == [edit.id for edit in never.edits]
    ours, theirs = tiny.edition.state_dict(), never.edition.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    texts = [*PROMPTS, *OTHERS]
    assert repr(tiny.route(texts)) == repr(never.route(texts))
    assert tiny.index.names._words == never.index.names._words
    tiny.compact()
    assert tiny.history() == ()


def test_all_edits_can_go_and_come_again(tiny: MeGModel, collector: Collector) -> None:
    alone = tiny.base.state_dict()
    answers = tiny.answer(PROMPTS[:6], 4)
    tiny.remove([edit.id for edit in tiny.edits])
    assert tiny.edits == () and not tiny.route([*PROMPTS, *OTHERS]).is_edit.any()
    assert (
        tiny.answer(PROMPTS[0], 4) != answers[:1] and tiny.base.state_dict().keys() == alone.keys()
    )
    with pytest.raises(UnknownEditError, match="there are no edits"):
        tiny.remove(PROMPTS[0])
    tiny.add(facts(9))
    assert tiny.route(PROMPTS[9])[0].is_edit and collector.prompts == [PROMPTS[9]]
    tiny.undo(2)
    assert tiny.answer(PROMPTS[:6], 4) == answers


def test_a_familiarity_gate_learns_the_edits_in_force(
    make_meg_model: Callable[..., MeGModel], collector: Collector
) -> None:
    model = make_meg_model("bank", "familiarity")
    model.gate.threshold.fill_(-0.5)
    model.add(facts(8), on_conflict="keep")
    routing = model.route([*PROMPTS[:6], PROMPTS[8]])
    assert routing.is_edit.all() and routing.nearest.tolist() == list(range(7))
    model.remove([edit.id for edit in model.edits])
    assert not model.route(PROMPTS[:6]).is_edit.any()
    model.add(facts(9), on_conflict="keep")
    assert model.route(PROMPTS[9])[0].is_edit


def test_an_already_given_answer_may_be_a_target(edited: MeGModel) -> None:
    prompt = "The capital of France is"
    before = edited.answer(prompt)
    edited.add([{"prompt": prompt, "target_new": before[0]}])
    assert edited.route(prompt)[0].is_edit and edited.answer(prompt) == before


# ----------------------------------------------------------------------------- conflicts


def asked_in_other_words(model: MeGModel, cases: list[EvaluationCase]) -> tuple[EditRequest, str]:
    """An edit in force, and a paraphrase which the router leads to it."""
    for case in cases:
        for text, found in zip(case.paraphrases, model.route(case.paraphrases), strict=True):
            if found.is_edit and found.score > 0.9:
                return case.request, text
    raise AssertionError("the router finds no paraphrase")


def test_another_target_is_refused_with_both_ids(edited: MeGModel, collector: Collector) -> None:
    new = changed(FACTS[3], "Lima")
    before = state(edited)
    with pytest.raises(ConflictError, match=f"{edit_id(new)}.*{edit_id(FACTS[3])}.*on_conflict"):
        edited.add([FACTS[9], new])
    assert state(edited) == before and not collector.prompts
    change = edited.add([FACTS[9], new], on_conflict="replace")
    assert [edit.id for edit in change.removed.edits] == [edit_id(FACTS[3])]
    assert collector.prompts == [FACTS[9].prompt, new.prompt]
    assert edit_id(FACTS[3]) not in {edit.id for edit in edited.edits}
    edited.add([FACTS[3]], on_conflict="keep")  # one prompt has one target, the later one
    assert edit_id(new) not in {edit.id for edit in edited.edits}
    with pytest.raises(ValueError, match="on_conflict: expected 'refuse'"):
        edited.add([FACTS[3]], on_conflict="maybe")  # type: ignore[arg-type]


def test_the_same_fact_in_other_words(edited: MeGModel, collector: Collector) -> None:
    fact, words = asked_in_other_words(edited, CASES[:FITTED])
    same = EditRequest(words, fact.target_new, fact.subject)
    other = changed(same, "Lima")
    before = state(edited)
    change = edited.add([same, fact])
    assert (change.number, set(change.merged)) == (
        0,
        {
            (r, edit_id(fact))
            for r in (same, EditRequest(fact.prompt, fact.target_new, fact.subject))
        },
    )
    assert "2 in force already" in repr(change)
    with pytest.raises(ConflictError, match=f"{edit_id(other)}.*{edit_id(fact)}"):
        edited.add([other])
    assert state(edited) == before and not collector.prompts
    edited.add([other], on_conflict="keep")
    assert len(edited.edits) == FITTED + 1
    edited.undo()
    edited.add([other], on_conflict="replace")
    assert len(edited.edits) == FITTED and edited.edits[-1].id == edit_id(other)
    assert fact.prompt not in [edit.prompt for edit in edited.edits]


def test_a_fact_is_not_lost_to_a_contradiction_in_its_own_batch(
    edited: MeGModel, collector: Collector
) -> None:
    fact, words = asked_in_other_words(edited, CASES[:FITTED])
    edited.add([fact, EditRequest(words, "Lima", fact.subject)], on_conflict="replace")
    prompts = {edit.prompt: edit.target_new for edit in edited.edits}
    assert prompts[words] == "Lima" and prompts[fact.prompt] == fact.target_new


# ----------------------------------------------------------------------------- bad input


def test_unknown_edits_are_refused_with_the_nearest_ones(edited: MeGModel) -> None:
    before = state(edited)
    near = f"{FACTS[0].prompt} now"
    with pytest.raises(UnknownEditError, match=f"the nearest: {edit_id(FACTS[0])}"):
        edited.remove([FACTS[1].prompt, near])
    with pytest.raises(UnknownEditError, match=edit_id(FACTS[0])):
        edited.remove(edit_id(FACTS[0])[:-1] + "x")
    with pytest.raises(UnknownEditError, match=edit_id(FACTS[0])):
        edited.replace([changed(FACTS[0], "Lima"), EditRequest(near, "Lima")])
    with pytest.raises(UnknownEditError, match="no edit has the id or prompt"):
        edited.remove("x " * 500_000)
    assert state(edited) == before
    edited.remove(FACTS[1].prompt)
    with pytest.raises(UnknownEditError):
        edited.remove(FACTS[1].prompt)
    assert len(edited.edits) == FITTED - 1
    edited.remove([FACTS[2].prompt, edit_id(FACTS[2]), f" {FACTS[2].prompt}\n"])  # one edit
    assert len(edited.edits) == FITTED - 2
    assert edited.remove([]).number == 0


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "no edit requests"),
        (["text"], "request 0: expected an object"),
        ([{"prompt": PROMPTS[8], "target_new": "Lima"}, {"prompt": "x"}], "request 1.*target_new"),
        ([{"prompt": "x", "target_new": y} for y in "ab"], "ask for different answers"),
        ([{"prompt": "x", "target_new": "\ud800"}], "half of a surrogate pair"),
        ([{"prompt": "word " * 40_000, "target_new": "Lima"}], "tokens"),
        ([{"prompt": "x", "target_new": "word " * 40_000}], "tokens"),
    ],
    ids=[
        "none",
        "text",
        "no target",
        "two targets",
        "surrogate",
        "200 kB asked",
        "200 kB answered",
    ],
)
def test_bad_requests_leave_everything_as_it_was(tiny: MeGModel, requests: Any, words: str) -> None:
    before = state(tiny)
    for change in (tiny.add, tiny.replace):
        with pytest.raises(ValueError) as caught:
            change(requests)
        assert change == tiny.replace or re.search(words, str(caught.value))
    assert state(tiny) == before


def test_a_neuron_without_a_finite_loss_changes_nothing(
    tiny: MeGModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise FloatingPointError("no finite loss")

    monkeypatch.setattr(live, "collect", fail)
    before = state(tiny)
    with pytest.raises(FloatingPointError):
        tiny.add(facts(8))
    assert state(tiny) == before
