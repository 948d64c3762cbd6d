"""Splits have nothing in common, and do not hang on the order of a file."""

from __future__ import annotations

import dataclasses
import random

import pytest

from meg_editor.benchmark.definition import FittingFacts
from meg_editor.data.cases import EvaluationCase, Probe
from meg_editor.data.groups import groups
from meg_editor.data.preprocessing import (
    key,
    one_per_subject,
    without_conflicts,
    without_false_locality,
)
from meg_editor.data.relations import Relations
from meg_editor.data.splits import Split, choose, split_cases, tuning_requests
from meg_editor.requests.request import EditRequest


def case(
    prompt: str, target: str = "x", subject: str | None = None, *paraphrases: str, **locality: str
) -> EvaluationCase:
    return EvaluationCase(
        EditRequest(prompt, target, subject),
        paraphrases=paraphrases,
        locality={kind: (Probe(text),) for kind, text in locality.items()},
    )


def fact(template: str, subject: str, relation: str | None, *others: str) -> EvaluationCase:
    """With `others` as its locality prompts."""
    request = EditRequest(template.replace("{}", subject), "x", subject)
    locality = {"neighbour": tuple(map(Probe, others))} if others else {}
    return EvaluationCase(request, paraphrases=("p",), locality=locality, relation=relation)


def many(count: int) -> list[EvaluationCase]:
    """Facts of which every third shares a subject, and every fifth a paraphrase, with another."""
    rng = random.Random(0)
    return [
        case(
            f"The colour of thing {n} is",
            "blue",
            f"thing {n - n % 3 if n % 9 == 1 else n}",
            f"Thing {n if n % 5 else rng.randrange(count)} has the colour",
        )
        for n in range(count)
    ]


def texts(cases: tuple[EvaluationCase, ...]) -> set[str]:
    result = {key(text) for c in cases for text in (c.request.prompt, *c.paraphrases)}
    return result | {key(c.request.subject) for c in cases if c.request.subject}


def test_no_locality_prompt_stands_on_both_sides_of_a_split() -> None:
    """CounterFact asks one beside many facts; a fitting stage would know it."""
    rng = random.Random(1)
    cases = []
    for n in range(200):
        asked = (f"Town {rng.randrange(300)} lies in", f"Town {rng.randrange(300)} is", "Oslo is")
        one = fact("{} lies in", f"Town {n}", "place", *asked)
        cases.append(dataclasses.replace(one, paraphrases=(f"Where is Town {n}?",)))
    split = split_cases(cases)
    facts = {key(text) for c in split.edited for text in (c.request.prompt, *c.paraphrases)}
    asked = {key(p.prompt) for c in split.edited for p in c.locality.get("neighbour", ())}
    fitted = [c for part in parts(split)[1:] for c in part]
    known = {key(text) for c in fitted for text in c.texts}
    learned = {key(p.prompt) for c in fitted for p in c.locality.get("neighbour", ())}
    assert not asked & known and not learned & facts
    assert len(asked) > 50 and len(learned) > 10 and "oslo is" in learned
    assert sum(map(len, parts(split))) == 200


def parts(split: Split) -> tuple[tuple[EvaluationCase, ...], ...]:
    return split.edited, split.pseudo, split.calibration


def test_parts_share_no_subject_prompt_or_paraphrase() -> None:
    split = split_cases(many(1000))
    edited, pseudo, calibration = map(texts, parts(split))
    assert not edited & pseudo and not edited & calibration and not pseudo & calibration
    assert sum(map(len, parts(split))) == 1000
    assert 600 < len(split.edited) < 800 and len(split.pseudo) > 100 < len(split.calibration) + 60


def test_neither_order_nor_duplicates_move_a_fact() -> None:
    cases = many(300)
    ordered, shuffled = split_cases(cases), split_cases(random.Random(1).sample(cases, 300))
    for one, other in zip(parts(ordered), parts(shuffled), strict=True):
        assert set(map(id, one)) == set(map(id, other))


def test_training_facts_which_are_also_edited_are_left_out() -> None:
    edits, training = many(100), many(400)
    split = split_cases(edits, training)
    assert list(split.edited) == edits
    assert not texts(split.edited) & (texts(split.pseudo) | texts(split.calibration))
    assert 200 < len(split.pseudo) + len(split.calibration) <= 300
    assert len(split.pseudo) > len(split.calibration) > 0


def test_groups_hang_together_through_others() -> None:
    assert groups([["a"], ["b"], [], ["c", "a"], ["d"], ["b", "d"], ["c"]]) == [0, 1, 2, 0, 1, 1, 0]
    assert groups([]) == []


def test_preprocessing_keeps_the_first() -> None:
    first = case("The river of Ur is", "Po", "Ur")
    rows = [first, case("The  river of Ur is", "Nile", "Ur"), case("Ur lies at", "sea", "ur")]
    assert without_conflicts(rows) == [first, rows[2]]
    assert one_per_subject(rows) == [first]
    assert one_per_subject([case("A is"), case("a is"), case("B is")])[1:] == [case("B is")]


def test_what_is_edited_is_no_locality() -> None:
    edited = case("A is", near="b IS?", far="C is")
    rows = [edited, case("Z is", "x", None, "B is")]
    assert set(without_false_locality(rows)[0].locality) == {"far"}
    assert without_false_locality([edited]) == [edited]


def test_an_edit_in_the_words_of_another_fact_is_no_locality() -> None:
    asks = [f"{name} is a native speaker of" for name in ("Jean Say", "Jean Sayer", "Bo")]
    ann = fact("{} is a native speaker of", "Ann", "P103", *asks)
    retained = without_false_locality([ann, fact("The mother tongue of {} is", "Jean Say", "P103")])
    assert [probe.prompt for probe in retained[0].locality["neighbour"]] == asks[1:]
    for relation in ("P27", None):
        other = fact("The home of {} is", "Jean Say", relation)
        assert without_false_locality([ann, other])[0] == ann


MADE, BUILT, SPOKE = "{}, made by", "{} is built by", "{} spoke"
KNOWN = [fact(MADE, "Ford T", "P176"), fact(BUILT, "Golf", "P176"), fact(MADE, "Office", "P178")]


def test_templates_of_one_relation_are_paraphrases() -> None:
    relations = Relations(
        [*KNOWN, fact("{} is a work of", "Word", "P178"), fact(SPOKE, "Bo", None)]
    )
    # "made by" is used in two relations, and so asks for either.
    assert set(relations.same(fact(MADE, "Fiat", None))) == {
        "Fiat, made by",
        "Fiat is built by",
        "Fiat is a work of",
    }
    assert set(relations.same(fact(BUILT, "Fiat", "P176"))) == {"Fiat is built by", "Fiat, made by"}
    assert relations.same(fact(SPOKE, "Al", None)) == ["Al spoke"]
    assert relations.same(fact("new {}?", "Al", "P176")) == [
        "new Al?",
        "Al, made by",
        "Al is built by",
    ]
    nameless = EvaluationCase(EditRequest("Who?", "x"))
    assert relations.same(nameless) == relations.others(nameless, 9, random.Random(0)) == []
    others = relations.others(fact(BUILT, "Fiat", "P176"), 9, random.Random(0))
    assert set(others) == {"Fiat is a work of", "Fiat spoke"}
    al = fact(SPOKE, "Al", None)
    assert len({tuple(relations.others(al, 2, random.Random(seed))) for seed in range(9)}) > 1


def test_a_fitting_relation_is_one_that_subjects_of_the_kind_have() -> None:
    speaks = fact("{} speaks", "Ann", "P103")
    lake = fact("{} drains into", "Loch Ness", "P403")
    facts = [
        fact("{} works as", "Ann", "P106"),
        speaks,
        lake,
        fact("{} is made by", "Golf", "P176"),
    ]
    relations = Relations(facts)
    bo = fact("{} works as", "Bo", "P106")
    assert len(relations.others(bo, 9, random.Random(0))) == 3
    assert relations.others(bo, 9, random.Random(0), fitting=True) == ["Bo speaks"]
    # No subject has this relation beside another one.
    assert relations.others(lake, 9, random.Random(0), fitting=True) == []
    # A phrasing of two relations has to fit with both.
    both = Relations([*facts, fact("{} speaks", "Radio Nord", "P407")])
    assert both.others(bo, 9, random.Random(0), fitting=True) == []


def test_paraphrases_tell_what_asks_for_the_same_where_relations_have_no_name() -> None:
    rows = [
        case("Who drew Ur?", "x", "Ur", "Who was the designer of Ur?"),
        case("Whose plan was Uruk?", "x", "Uruk", "Who was the designer of Uruk?", "No name"),
        case("Where is Eridu?", "x", "Eridu", "No name"),
        case("Whose plan was Kish?", "x", "Kish", "Who had Kish planned?"),
        case("Who had Lagash planned?", "x", "Lagash"),
    ]
    relations = Relations(rows)
    assert set(relations.same(rows[0])) == {
        "Who drew Ur?",
        "Whose plan was Ur?",
        "Who had Ur planned?",
    }
    # A text that does not name its subject, "No name", is no template.
    assert relations.others(rows[4], 9, random.Random(0)) == ["Where is Lagash?"]
    assert set(relations.others(rows[2], 9, random.Random(0))) == {
        "Who drew Eridu?",
        "Whose plan was Eridu?",
        "Who had Eridu planned?",
    }


def test_a_sample_respects_paraphrases_of_facts_outside_it() -> None:
    rows = [*KNOWN, fact(SPOKE, "Bo", None, "Golf, made by", "Fiat is built by")]
    for seed in range(9):  # whatever is drawn: two of four facts
        chosen = choose(rows, 2, seed)
        edits = {c.request.subject for c in chosen}
        for bo in (c for c in chosen if c.request.subject == "Bo"):
            left = {probe.prompt for probe in bo.locality.get("neighbour", ())}
            assert ("Golf, made by" in left) == ("Golf" not in edits) and "Fiat is built by" in left


def test_facts_with_paraphrases_are_edited_first() -> None:
    rows = [case(f"{n} is", "x", None, *(["p"] if n % 4 == 0 else [])) for n in range(40)]
    chosen = choose(rows, 12, seed=0)
    assert sum(bool(c.paraphrases) for c in chosen) == 10
    assert chosen == choose(rows, 12, seed=0) != choose(rows, 12, seed=1)
    for count in (0, 41):
        with pytest.raises(ValueError, match=f"expected 1 to 40.*got {count}"):
            choose(rows, count, 0)


def test_tuning_requests_carry_what_fitting_needs() -> None:
    rows = [case("A is", "x", "A", "A has", near="B is", far="C is"), case("D is")]
    (request,) = tuning_requests(rows, 5, seed=0)
    assert request == EditRequest("A is", "x", "A", ("A has",), ("B is", "C is"))


def test_tuning_requests_respect_paraphrases_of_other_facts() -> None:
    chosen = [KNOWN[1], fact("{}, made of", "Fiat", "P186")]
    requests = tuning_requests(chosen, 2, 0, Relations([*KNOWN, *chosen]))
    result = {r.subject: set(r.locality_prompts) for r in requests}
    assert result == {
        "Golf": {"Golf, made of"},
        "Fiat": {"Fiat, made by", "Fiat is built by"},
    }


def test_tuning_requests_ask_something_else_about_the_subject() -> None:
    rows = [*KNOWN, fact(SPOKE, "Bo", "P1"), fact("{} died in", "Al", "P2")]
    result = {r.subject: set(r.locality_prompts) for r in tuning_requests(rows, 9, seed=0)}
    assert result["Golf"] == {"Golf spoke", "Golf died in"}  # "made by" asks what "built by" does
    assert result["Bo"] == {"Bo, made by", "Bo is built by", "Bo died in"}
    assert tuning_requests(rows, 9, seed=0) == tuning_requests(rows, 9, seed=0)
    fewer = {r.subject: set(r.locality_prompts) for r in tuning_requests(rows, 9, 0, others=1)}
    assert len(fewer["Golf"]) == 1 and fewer["Golf"] < result["Golf"]


def test_tuning_requests_ask_for_no_fact_which_may_be_pretended_to_be_edited() -> None:
    rows = [fact("{} was born in", "Al", "P1"), fact("{} died in", "Al", "P2", "Bo died in")]
    rows += [fact("{} spoke", "Bo", "P3"), fact("{} talked", "Bo", "P3")]
    result = {r.prompt: r.locality_prompts for r in tuning_requests(rows, 9, seed=0, others=9)}
    assert set(result["Al was born in"]) == {"Al spoke", "Al talked"}
    assert set(result["Bo spoke"]) == {"Bo was born in", "Bo died in"}
    alone = {r.prompt: r.locality_prompts for r in tuning_requests(rows[:1], 9, 0, Relations(rows))}
    assert set(alone["Al was born in"]) == {"Al died in", "Al spoke", "Al talked"}


def test_what_is_added_to_fitting_facts_is_no_question_that_is_asked() -> None:
    """Prompts of other relations were added after the split had been cleared of such questions."""
    asked = "Zoe works as"
    pool = [
        fact("{} works as", "Ada", "job"),
        fact("{} works as", "Eve", "job"),
        fact("{} lives in", "Zoe", "home", "Eve lives in"),
        fact("{} lives in", "Ida", "home", "Eve lives in"),
    ]
    edited = fact("{} works as", "Bob", "job", asked)
    split = Split((edited,), tuple(pool), tuple(pool))
    facts = FittingFacts.of(split)
    for part in (facts.pseudo, facts.calibration):
        added = {prompt for request in part for prompt in request.locality_prompts}
        assert "Ida works as" in added and asked not in added
