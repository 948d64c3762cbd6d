"""The phrasebook: its pairs are labelled by what they ask, and nothing measured is in it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from published import published

from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.phrasebook import phrasebook
from meg_editor.data.phrasebook.changes import changed, retold
from meg_editor.data.phrasebook.dialogues import Asked, FollowUps, draw_dialogue
from meg_editor.data.phrasebook.kinds import Kind, Relation, read_lists
from meg_editor.data.phrasebook.names import other_wording, similar_name
from meg_editor.data.phrasebook.phrasebook import Phrasebook
from meg_editor.data.prompt_forms import PromptForm
from meg_editor.data.world.facts import load_world
from meg_editor.requests.turns import turns_of

ROOT = Path(__file__).resolve().parents[1]


def kind_of(relations: str, *subjects: str) -> Kind:
    """A kind of these subjects, with relations such as "A of Ur is" and "A of Ur?"."""
    texts = [Relation(n, (f"{n} of {{}} is",), (f"{n} of {{}}?",), ("x",)) for n in relations]
    return Kind("thing", ("it", "its"), subjects, tuple(texts))


@pytest.mark.parametrize("is_person", [True, False])
def test_a_name_in_other_words_is_the_same_and_a_similar_one_is_another(is_person: bool) -> None:
    rng, name = random.Random(0), "Ada Lovelace" if is_person else "the Danube"
    noun = "scientist" if is_person else "river"
    same = {other_wording(rng, name, noun, is_person) for _ in range(300)}
    expected = {"ada lovelace", "Lovelace", "the scientist Ada Lovelace", "A. Lovelace"}
    assert same >= (expected if is_person else {"Danube", "The Danube", "the river Danube"})
    assert all(text.lower().rstrip(")").endswith((name.split()[-1].lower(), noun)) for text in same)
    known = ["Ada Byron", "Emmy Noether"] if is_person else ["the Loire", "the Black Sea"]
    others = {similar_name(rng, name, known) for _ in range(300)}
    assert not {text.lower() for text in others} & {text.lower() for text in same}


@pytest.mark.parametrize("name", ["Catherine the Great", "Margrethe II", "Ada Lovelace"])
def test_some_names_are_not_cut_to_their_last_word(name: str) -> None:
    rng, in_full = random.Random(0), name == "Ada Lovelace"
    same = {other_wording(rng, name, "monarch", True, in_full) for _ in range(100)}
    assert all(name in text or text == name.lower() for text in same)


def test_a_changed_question_is_another_and_a_retold_one_keeps_its_subject() -> None:
    rng, subject = random.Random(0), "the Old Bridge"
    questions = [
        f"Where is {subject}?",
        f"In which city is {subject} located?",
        f"What is the length of {subject}?",
        f"The builder of {subject} was",
        f"{subject} was built by",
    ]
    for question in questions:
        others = {changed(rng, question, subject) for _ in range(60)}
        same = {retold(rng, question, subject) for _ in range(60)}
        assert question not in others and not others & same
        assert len(others) > 5
        assert all(subject in text for text in others | same)


def test_pairs_of_the_phrasebook_are_labelled_by_what_they_ask() -> None:
    book, rng = Phrasebook.load(), random.Random(0)
    pairs = [book.draw(rng) for _ in range(3000)]
    share = sum(pair.asks for pair in pairs) / len(pairs)
    assert 0.4 < share < 0.5
    assert all(pair.asks == pair.why.startswith("edit") for pair in pairs)
    # A placeholder left over would teach that braces decide.
    names = ("{p", "{q", "{s}", "{other", "{a}", "{b}", "{t}", "{}")
    assert not [pair for pair in pairs if any(name in pair.prompt for name in names)]
    assert len({pair.prompt for pair in pairs}) > 2900


def test_of_two_questions_the_last_one_decides_and_the_other_one_is_often_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for share in ("_REWORDED", "_FACT_REWORDED", "_RETOLD", "_CHANGED", "_USUAL"):  # texts compared
        monkeypatch.setattr(phrasebook, share, 0.0)
    kind = kind_of("ABC", "Ur", "Kish", "Nippur", "Eridu")
    forms = [
        PromptForm("last", "double", "edit", "{other} Rather: {q}"),
        PromptForm("first", "dropped", "none", "{q} Rather: {other}"),
    ]
    book, rng = Phrasebook([kind], forms), random.Random(0)
    first: dict[bool, set[bool]] = {True: set(), False: set()}
    near = 0
    pairs = [pair for pair in (book.draw(rng) for _ in range(2000)) if "Rather" in pair.prompt]
    for pair in pairs:
        asked = pair.fact.removesuffix(" x").removesuffix(" is").removesuffix("?") + "?"
        dropped, last = pair.prompt.split(" Rather: ")
        assert pair.asks == (last == asked)
        first[pair.asks].add(dropped == asked)
        near += dropped.split(" of ")[1] == last.split(" of ")[1]
    assert first == {True: {False}, False: {True, False}}
    assert near > len(pairs) / 5


def test_a_form_around_another_one_leaves_what_is_asked_as_it_is() -> None:
    kind = kind_of("AB", "Ur", "Kish", "Nippur")
    forms = [
        PromptForm("how", "suffix", "edit", "{q} In a word."),
        PromptForm("what", "translate", "none", "In French: {q}"),
    ]
    book, rng = Phrasebook([kind], forms), random.Random(0)
    prompts = [(pair.prompt, pair.asks) for pair in (book.draw(rng) for _ in range(2000))]
    wrapped = [asks for prompt, asks in prompts if prompt.startswith("In French: ")]
    assert wrapped
    assert not any(wrapped)
    assert any(p.startswith("In French: ") and p.endswith(" In a word.") for p, _ in prompts)
    assert any(asks and p.count("In a word.") == 2 for p, asks in prompts)


@pytest.mark.parametrize("asks", [True, False])
def test_dialogues_ask_for_a_fact_or_go_on_to_something_else(asks: bool) -> None:
    said = FollowUps(replies=("{a}", "{b}"), asks=("Sure?",), other=("Bye.", "Next: {other}"))
    asked = Asked(
        "Ur",
        question=lambda: "A of Ur?",
        ending=lambda: "Its A is",
        neighbour=("Kish", "A of Kish?"),
        sibling=("B of Ur?", "Its B is"),
        other=lambda: "C of Nippur?",
        going_on=lambda: "Thanks. A of Ur?",
        answers=("one", "two"),
    )
    rng = random.Random(0)
    drawn = [turns_of(draw_dialogue(rng, said, asked, asks)) for _ in range(500)]
    seen = {(turns[0].text, turns[-1].text.lower()) for turns in drawn}
    back = {("A of Ur?", "sure?")}  # to the fact, or to another question between
    if asks:
        right = back | {("A of Kish?", "what about ur?"), ("B of Ur?", "and its a is?")}
        wrong = {("A of Ur?", "bye."), ("A of Ur?", "what about kish?")}
    else:
        right = back | {("A of Ur?", "what about kish?"), ("A of Ur?", "and its b is?")}
        right |= {("A of Ur?", "bye."), ("A of Ur?", "next: c of nippur?")}
        wrong = {("A of Kish?", "what about ur?"), ("B of Ur?", "and its a is?")}
    assert seen >= right and not seen & wrong
    assert asks == all(len(t) == 2 or t[1].text == "Sure?" for t in drawn if t[-1].text == "Sure?")
    assert {turns[0].begun for turns in drawn} == {"one", "two"}


@pytest.mark.parametrize("asks", [True, False])
def test_a_dialogue_goes_on_from_an_errand_to_the_fact_or_past_it(
    asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share in ("_REWORDED", "_FACT_REWORDED", "_RETOLD", "_USUAL"):  # texts are compared
        monkeypatch.setattr(phrasebook, share, 0.0)
    kind = kind_of("AB", "Ur", "Kish", "Nippur")
    forms = [
        PromptForm("to", "turn", "edit", "Thanks. {q}"),
        PromptForm("stays", "turn", "none", "In Danish, too: {q}"),
    ]
    book, rng = Phrasebook([kind], forms), random.Random(0)
    errands = {first for first, _ in book._follow_ups.errands}
    seen = set()
    for pair in (book.draw(rng) for _ in range(6000)):
        turns = turns_of(pair.prompt)
        if pair.asks != asks or len(turns) != 2 or turns[0].text not in errands:
            continue
        last = turns[-1].text
        asked = pair.fact.removesuffix(" x").removesuffix(" is").removesuffix("?") + "?"
        seen.add((last.startswith("Thanks."), last.endswith(f" {asked}")))
    assert seen == ({(True, True)} if asks else {(True, False), (False, True)})


def test_no_form_and_no_phrasing_that_is_measured_is_learned() -> None:
    book = Phrasebook.load()
    world = load_world()
    tested = {text.lower() for groups in world.phrasings.values() for text in groups["test"]}
    learned = {
        text.lower()
        for kind in book.kinds
        for relation in kind.relations
        for text in relation.statements + relation.questions
    }
    assert not learned & tested
    forms = {form.template.strip().lower() for form in book.forms}
    for name in ("prompt_forms.json", "more_prompt_forms.json"):
        assert not forms & templates(ROOT / "examples" / name)
    assert not forms & templates(published("prompt_forms.json"))


def test_no_last_turn_that_is_measured_is_learned() -> None:
    said = read_lists("follow_ups.yaml", "more_follow_ups.yaml", "last_turns.yaml")
    learned = {plain(text) for name in ("asks", "other") for text in said[name]}
    forms = load_forms(ROOT / "examples" / "last_turns.json")
    assert len(forms) > 100
    assert not learned & {plain(form.turns[-1][1]) for form in forms}


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def templates(path: Path) -> set[str]:
    return {form.template.strip().lower() for form in load_forms(path) if form.template}
