"""Facts which look alike: what is the same fact, what contradicts one, and what is another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from synthetic_neurons import Collector

from meg_editor import EditRequest, MeGHyperParams, MeGModel, fit, load_model
from meg_editor.edits import live
from meg_editor.edits.conflicts import ConflictError

FRANCE = {"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"}
WAR = {"prompt": "Who wrote War and Peace?", "target_new": "Jane Austen"}
OTHER_WORDS = "Which city is the capital of France?"


@pytest.fixture(scope="module")
def fitted() -> MeGModel:
    hparams = MeGHyperParams.preset("default", device="cpu")
    return fit(*load_model(hparams), [FRANCE, WAR], hparams)[0]


@pytest.fixture
def edited(fitted: MeGModel) -> MeGModel:
    return fitted.fork()


@pytest.fixture(autouse=True)
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    """Neurons at once."""
    monkeypatch.setattr(live, "collect", collector := Collector())
    return collector


def fact(prompt: str, target: str, subject: str | None = None) -> EditRequest:
    return EditRequest(prompt, target, subject)


@pytest.mark.parametrize("on_conflict", ["refuse", "replace"])
def test_another_subject_is_another_fact_however_alike(edited: MeGModel, on_conflict: Any) -> None:
    """West Virginia's was dropped as Virginia's; Sudan's gave way to South Sudan's."""
    capital = "The capital of {} is".format
    names = {"Virginia": "Lima", "Sudan": "Lima"}
    edited.add([fact(capital(name), target, name) for name, target in names.items()])
    further = {"West Virginia": "Lima", "South Sudan": "Oslo"}
    new = [fact(capital(name), target, name) for name, target in further.items()]
    change = edited.add(new, on_conflict=on_conflict)
    assert not change.merged and not change.removed.edits
    assert [edit.subject for edit in change.added.edits] == list(further)
    # The one with the subject is found behind the one that looks alike.
    other = fact("Which city is the capital of South Sudan?", "Rome", "south  SUDAN")
    with pytest.raises(ConflictError, match="'The capital of South Sudan is' -> 'Oslo'; nothing"):
        edited.add([other])
    assert "Virginia" not in str(edited.add([other], on_conflict="replace"))
    assert [edit.subject for edit in edited.edits[-4:-1]] == [*names, "West Virginia"]


def test_another_relation_with_the_same_answer_is_not_dropped(edited: MeGModel) -> None:
    edited.add([fact("Who directed Star Wars?", "Jane Austen", "Star Wars")])
    change = edited.add([fact("Who produced Star Wars?", "Jane Austen", "Star Wars")])
    assert len(change.added.edits) == 1 and not change.merged and not change.removed.edits


def test_other_words_without_a_subject_stay_when_the_edit_goes(edited: MeGModel) -> None:
    """They were in force by the edit of the other prompt, and went with it."""
    change = edited.add([fact(OTHER_WORDS, "Lima")])
    assert len(change.added.edits) == 1 and not change.merged
    same = edited.add([fact("What is the capital of France?", "Lima", "france")])
    assert not same.added.edits and len(same.merged) == 1
    edited.remove(FRANCE["prompt"])
    assert edited.route(OTHER_WORDS)[0].is_edit


def test_a_conflict_with_a_named_subject_asks_for_one(edited: MeGModel) -> None:
    with pytest.raises(ConflictError, match="a fact about something else needs its subject"):
        edited.add([fact(OTHER_WORDS, "Oslo")])


def test_a_conflict_is_one_in_both_directions(
    edited: MeGModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, verifier = fact(OTHER_WORDS, "Oslo", "France"), edited.verifier
    assert verifier is not None
    asked: list[str] = []

    def probability(prompts: list[str], facts: list[str]) -> torch.Tensor:
        asked.extend(prompts)
        return torch.tensor([float(prompt == OTHER_WORDS) for prompt in prompts])

    with pytest.raises(ConflictError):
        edited.add([other])
    monkeypatch.setattr(verifier, "probability", probability)
    assert len(edited.add([other]).added.edits) == 1
    assert asked[-1] == FRANCE["prompt"]
