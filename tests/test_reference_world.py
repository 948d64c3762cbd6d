"""The reference world is large, consistent, the same everywhere, and keeps its splits apart."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

import pytest

import meg_editor
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.relations import Relations
from meg_editor.data.splits import tuning_requests
from meg_editor.data.world.facts import GROUPS, Fact, Group, World, load_world
from meg_editor.data.world.requests import (
    calibration_requests,
    edit_cases,
    pseudo_requests,
    reference_split,
    sweep_requests,
)
from meg_editor.requests.request import EditRequest, merge_requests

KINDS = {"same_relation", "same_subject", "unrelated"}


@cache
def the_world() -> World:
    return load_world()


@cache
def cases(count: int = 1500, seed: int = 0) -> list[EvaluationCase]:
    return edit_cases(the_world(), count, seed)


@pytest.fixture
def world() -> World:
    return the_world()


def asked_by(world: World, *groups: Group) -> dict[str, Fact]:
    """Prompt -> the fact it asks for, over every fact and the named groups of phrasings."""
    return {p: fact for fact in world.facts for group in groups for p in world.prompts(fact, group)}


def texts(requests: Iterable[EditRequest]) -> set[str]:
    return {text for r in requests for text in (r.prompt, *r.rephrases, *r.locality_prompts)}


# ------------------------------------------------------------------------------- the facts


def test_no_question_is_a_fact_of_the_fitting_stages() -> None:
    """A tenth of the questions about the same relation were tuned on."""
    split = reference_split(the_world())
    known = {
        text for part in (split.pseudo, split.calibration) for case in part for text in case.texts
    }
    asked = {probe.prompt for case in cases() for kind in case.locality.values() for probe in kind}
    assert not asked & known


def test_it_is_large_enough(world: World) -> None:
    assert sum(not fact.made_up for fact in world.facts) >= 800
    assert len(world.facts) >= 12_000
    editable = {fact.relation for fact in world.in_split("edit")}
    assert len(editable) >= 10
    assert len(world.in_split("edit")) >= 10_000


def test_every_relation_has_nine_phrasings_in_three_disjoint_groups(world: World) -> None:
    assert set(world.phrasings) == {fact.relation for fact in world.facts}
    for relation, groups in world.phrasings.items():
        assert set(groups) == set(GROUPS)
        every = [" ".join(t.lower().split()) for templates in groups.values() for t in templates]
        assert len(every) >= 9, relation
        assert all(len(templates) >= 3 for templates in groups.values()), relation
        assert len(set(every)) == len(every), relation
        assert all(template.count("{}") == 1 for template in every), relation


def test_a_prompt_asks_for_one_fact(world: World) -> None:
    """No two facts, and no two groups, share a prompt: else no answer to it would be right."""
    owners = Counter(
        p for fact in world.facts for group in GROUPS for p in world.prompts(fact, group)
    )
    assert [prompt for prompt, count in owners.items() if count > 1] == []


def test_prompts_hold_the_subject_and_never_the_answer_at_their_end(world: World) -> None:
    for fact in world.facts[::7]:
        for group in GROUPS:
            for prompt in world.prompts(fact, group):
                assert fact.subject in prompt and "{" not in prompt
                assert not prompt.endswith(f" {fact.answer}")


def test_facts_are_clean_text(world: World) -> None:
    for fact in world.facts:
        for text in (fact.subject, fact.answer):
            assert text and text == " ".join(text.split())


def test_splits_share_no_subject(world: World) -> None:
    """Common knowledge is evaluated for people who are edited, but itself never edited."""
    owner: dict[str, str] = {}
    for fact in world.facts:
        if fact.split != "common":
            assert owner.setdefault(fact.subject, fact.split) == fact.split
    assert set(owner.values()) == {"edit", "pseudo", "calibration"}
    common = {fact.relation for fact in world.in_split("common")}
    assert common == {"opposite", "sum", "birth_country"}
    assert not common & {f.relation for f in world.in_split("edit", "pseudo", "calibration")}


@pytest.mark.parametrize(
    ("relation", "subject", "answer"),
    [
        ("capital", "France", "Paris"),
        ("capital", "Peru", "Lima"),
        ("language", "Portugal", "Portuguese"),
        ("currency", "Japan", "yen"),
        ("continent", "Kenya", "Africa"),
        ("symbol", "gold", "Au"),
        ("symbol", "iron", "Fe"),
        ("atomic_number", "gold", "79"),
        ("atomic_number", "oxygen", "8"),
        ("author", "War and Peace", "Leo Tolstoy"),
        ("author", "Pride and Prejudice", "Jane Austen"),
        ("inventor", "telephone", "Alexander Graham Bell"),
        ("landmark_city", "Eiffel Tower", "Paris"),
        ("creator", "Mona Lisa", "Leonardo da Vinci"),
        ("opposite", "hot", "cold"),
        ("sum", "7 plus 8", "15"),
    ],
)
def test_some_facts_everyone_knows(world: World, relation: str, subject: str, answer: str) -> None:
    (fact,) = (f for f in world.by_subject[subject] if f.relation == relation)
    assert fact.answer == answer and not fact.made_up


def test_no_more_facts_are_swept_than_there_are(world: World) -> None:
    with pytest.raises(ValueError, match="count: expected 0 to .* got 1000000"):
        sweep_requests(10**6, 0, world)


def test_atomic_numbers_count_the_elements(world: World) -> None:
    numbers = sorted(int(fact.answer) for fact in world.by_relation["atomic_number"])
    assert numbers == list(range(1, 119))
    symbols = [fact.answer for fact in world.by_relation["symbol"]]
    assert len(set(symbols)) == 118 and all(len(symbol) <= 2 for symbol in symbols)


def test_sums_are_right(world: World) -> None:
    for fact in world.by_relation["sum"]:
        first, second = fact.subject.split(" plus ")
        assert int(first) + int(second) == int(fact.answer)


def test_two_hops_agree(world: World) -> None:
    """The country of birth is the country whose capital is the birthplace."""
    country_of = {fact.answer: fact.subject for fact in world.by_relation["capital"]}
    born = {fact.subject: fact.answer for fact in world.by_relation["birthplace"]}
    derived = {fact.subject: fact.answer for fact in world.by_relation["birth_country"]}
    assert len(derived) >= 1000
    assert derived == {
        person: country_of[city] for person, city in born.items() if person in derived
    }
    assert derived.keys() == born.keys()


def test_answers_are_those_of_the_facts(world: World) -> None:
    assert "Paris" in world.answers["capital"] and "Paris" not in world.answers["currency"]
    for relation, answers in world.answers.items():
        assert len(answers) >= 2 and len(set(answers)) == len(answers), relation


def _digests() -> str:
    """Of the world and of requests drawn from it."""
    world = load_world()
    drawn = repr((edit_cases(world, 50, 3), pseudo_requests(world)[:50]))
    return f"{world.fingerprint} {hashlib.sha256(drawn.encode()).hexdigest()}"


def test_every_process_builds_the_same_world() -> None:
    tests = Path(__file__).parent
    paths = [str(tests), str(Path(meg_editor.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", "import test_reference_world as t; print(t._digests())"],
        env={
            **os.environ,
            "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
            "PYTHONPATH": os.pathsep.join(paths),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == _digests()


def test_the_fingerprint_sees_every_fact_and_phrasing(world: World) -> None:
    fewer = World(world.facts[:-1], world.phrasings)
    reworded = World(world.facts, {**world.phrasings, "sum": world.phrasings["opposite"]})
    assert len({world.fingerprint, fewer.fingerprint, reworded.fingerprint}) == 3


# ------------------------------------------------------------------------------- the edits


def test_edits_are_facts_of_the_edit_split_with_another_answer(world: World) -> None:
    by_prompt = asked_by(world, "edit")
    for case in cases():
        fact = by_prompt[case.request.prompt]
        assert fact.split == "edit" and fact.subject == case.request.subject
        assert case.truth == fact.answer != case.request.target_new
        assert case.request.target_new in world.answers[fact.relation]
        assert case.request.rephrases == case.request.locality_prompts == ()


def test_edits_are_distinct_and_pass_validation() -> None:
    merged = merge_requests([case.request for case in cases()])
    assert len(merged.requests) == 1500 and merged.duplicates == 0


def test_real_and_made_up_facts_are_edited(world: World) -> None:
    by_prompt = asked_by(world, "edit")
    made_up = Counter(by_prompt[case.request.prompt].made_up for case in cases())
    assert made_up[True] > 500 and made_up[False] > 100
    assert len({by_prompt[case.request.prompt].relation for case in cases()}) >= 10


def test_paraphrases_are_the_test_phrasings_of_the_edited_fact(world: World) -> None:
    by_prompt, tests = asked_by(world, "edit"), asked_by(world, "test")
    for case in cases():
        assert len(set(case.paraphrases)) >= 3
        assert {tests[p] for p in case.paraphrases} == {by_prompt[case.request.prompt]}


def test_locality_never_asks_an_edited_fact(world: World) -> None:
    by_prompt = asked_by(world, *GROUPS)
    for some in (cases(), cases(200, 1)):
        edited = {by_prompt[case.request.prompt] for case in some}
        for case in some:
            for prompts in case.locality.values():
                assert not edited & {by_prompt[probe.prompt] for probe in prompts}


def test_the_three_kinds_of_locality_are_what_they_are_called(world: World) -> None:
    by_prompt = asked_by(world, *GROUPS)
    seen: Counter[str] = Counter()
    for case in cases():
        edit = by_prompt[case.request.prompt]
        assert set(case.locality) <= KINDS and "unrelated" in case.locality
        for kind, prompts in case.locality.items():
            seen[kind] += 1
            assert prompts
            assert all(by_prompt[p.prompt].answer in p.answers for p in prompts)
            for fact in (by_prompt[probe.prompt] for probe in prompts):
                if kind == "same_relation":
                    assert fact.relation == edit.relation and fact.subject != edit.subject
                elif kind == "same_subject":
                    assert fact.subject == edit.subject and fact.relation != edit.relation
                else:
                    assert fact.split == "common"
                    assert fact.subject != edit.subject and fact.relation != edit.relation
    assert set(seen) == KINDS and seen["same_relation"] > 1400 and seen["same_subject"] > 1000


def test_locality_never_asks_what_follows_from_an_edit(world: World) -> None:
    """Whose birthplace is edited has another country of birth: to keep the old one is no virtue."""
    by_prompt = asked_by(world, *GROUPS)
    moved = {
        case.request.subject
        for case in cases()
        if by_prompt[case.request.prompt].relation == "birthplace"
    }
    wrong = [
        prompt
        for case in cases()
        for probes in case.locality.values()
        for prompt in (probe.prompt for probe in probes)
        if by_prompt[prompt].relation == "birth_country" and by_prompt[prompt].subject in moved
    ]
    assert moved and wrong == []


def test_portability_asks_the_country_of_the_new_birthplace(world: World) -> None:
    by_prompt, tests = asked_by(world, "edit"), asked_by(world, "test")
    country_of = {fact.answer: fact.subject for fact in world.by_relation["capital"]}
    born = {fact.subject: fact.answer for fact in world.by_relation["birth_country"]}
    moved = 0
    for case in cases():
        fact = by_prompt[case.request.prompt]
        if fact.relation != "birthplace":
            assert case.portability == {}
            continue
        moved += 1
        hops = case.portability["two_hop"]
        assert len(hops) == len(world.phrasings["birth_country"]["test"])
        for hop in hops:
            assert tests[hop.prompt].relation == "birth_country"
            assert tests[hop.prompt].subject == fact.subject
            assert hop.answers == (country_of[case.request.target_new],)
        if country_of[case.truth] != country_of[case.request.target_new]:
            assert {hop.answers[0] for hop in hops} != {born[fact.subject]}
    assert moved > 50


def test_without_capitals_there_are_no_portability_prompts(world: World) -> None:
    """A city which is no capital tells no country."""
    facts = tuple(fact for fact in world.facts if fact.relation != "capital")
    few = edit_cases(World((*facts, *world.by_relation["capital"][:1]), world.phrasings), 300, 0)
    assert sum(bool(case.portability) for case in few) <= 3


def test_a_seed_gives_its_edits_and_no_others() -> None:
    assert edit_cases(the_world(), 200, 1) == cases(200, 1)
    prompts = [{case.request.prompt for case in cases(200, seed)} for seed in (1, 2)]
    assert len(prompts[0] & prompts[1]) < 50


@pytest.mark.parametrize("count", [0, -3, 1_000_000])
def test_impossible_numbers_of_edits_are_refused(world: World, count: int) -> None:
    possible = len(world.in_split("edit"))
    with pytest.raises(ValueError, match=rf"1 to {possible}.*got {count}$"):
        edit_cases(world, count, 0)


def test_every_fact_of_the_split_can_be_edited_at_once(world: World) -> None:
    everything = edit_cases(world, len(world.in_split("edit")), 0)
    assert len({case.request.prompt for case in everything}) == len(everything) >= 10_000
    assert all(case.locality["unrelated"] for case in everything)


# ------------------------------------------------------- what encoders and gates are tuned on


@pytest.mark.parametrize(
    ("split", "make", "rephrases"),
    [
        ("pseudo", pseudo_requests, 4),
        ("calibration", calibration_requests, 2),
        ("calibration", partial(sweep_requests, 300, 0), 4),
    ],
    ids=["pseudo", "calibration", "sweep"],
)
def test_tuning_sees_neither_edited_subjects_nor_test_phrasings(
    world: World, split: str, make: Callable[..., list[EditRequest]], rephrases: int
) -> None:
    requests = make(world=world)
    by_prompt, tests = asked_by(world, "edit", "pseudo"), asked_by(world, "test")
    used = texts(requests)
    assert len(requests) >= 300 and not used & tests.keys()
    assert used <= by_prompt.keys()
    edited = {fact.subject for fact in world.in_split("edit")}
    other = "calibration" if split == "pseudo" else "pseudo"
    others = {fact.subject for fact in world.in_split(other)}  # type: ignore[arg-type]
    for prompt in used:
        assert by_prompt[prompt].subject not in edited | others
    for request in requests:
        fact = by_prompt[request.prompt]
        assert fact.split == split and fact.subject == request.subject
        assert {by_prompt[rephrase] for rephrase in request.rephrases} == {fact}
        assert request.prompt not in request.rephrases
        assert len(request.rephrases) >= rephrases
        assert fact not in {by_prompt[prompt] for prompt in request.locality_prompts}


def test_calibration_is_phrased_in_ways_which_are_new_to_the_encoder(world: World) -> None:
    """A threshold is for users' words, which no encoder was tuned on."""

    def template(text: str, subject: str | None) -> str:
        return text.replace(str(subject), "{}")

    tuned = {template(p, r.subject) for r in pseudo_requests(world) for p in r.rephrases}
    judged = {template(p, r.subject) for r in calibration_requests(world) for p in r.rephrases}
    assert len(judged) >= 2 * 10 and not tuned & judged


def test_tuning_requests_have_hard_negatives(world: World) -> None:
    by_prompt = asked_by(world, "edit", "pseudo")
    for request in [*pseudo_requests(world), *calibration_requests(world)]:
        fact = by_prompt[request.prompt]
        assert request.target_new in world.answers[fact.relation]
        negatives = [by_prompt[prompt] for prompt in request.locality_prompts]
        assert negatives
        assert all(n.relation == fact.relation or n.subject == fact.subject for n in negatives)


def test_no_tuning_question_asks_for_a_fact_which_is_pretended_to_be_edited(world: World) -> None:
    by_prompt = asked_by(world, "edit", "pseudo")
    split = reference_split(world)
    relations = Relations([*split.pseudo, *split.calibration])
    for cases in (split.pseudo, split.calibration):
        requests = tuning_requests(cases, len(cases), 0, relations, others=16)
        facts = {by_prompt[request.prompt] for request in requests}
        matches = [by_prompt.get(text) for r in requests for text in r.locality_prompts]
        assert sum(fact is not None for fact in matches) > 1000  # the rest is about the wrong kind
        assert not facts & set(matches)


def test_paraphrases_tell_the_relations_of_this_world(world: World) -> None:
    split = reference_split(world)
    known = [*edit_cases(world, 64, seed=0), *split.pseudo, *split.calibration]
    assert not any(case.relation for case in known)
    relations, by_prompt = Relations(known), asked_by(world, "edit")
    for case in known:
        fact = by_prompt[case.request.prompt]
        assert set(relations.same(case)) == set(world.prompts(fact, "edit"))


def test_only_encoders_are_tuned_on_the_truth(world: World) -> None:
    by_prompt = asked_by(world, "edit", "pseudo")
    for request in pseudo_requests(world):
        assert request.target_new == by_prompt[request.prompt].answer
    for request in [*calibration_requests(world), *sweep_requests(300, 0, world)]:
        fact = by_prompt[request.prompt]
        assert request.target_new != fact.answer
        assert request.target_new in world.answers[fact.relation]


def test_tuning_requests_are_distinct(world: World) -> None:
    pseudo, calibration = pseudo_requests(world), calibration_requests(world)
    assert len({request.prompt for request in pseudo}) == len(pseudo) >= 800
    assert len({request.prompt for request in calibration}) == len(calibration) == 400
    assert not texts(pseudo) & texts(calibration)
