"""Edits, pseudo-knowledge and test cases drawn from the reference world."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection, Sequence

from meg_editor.data.cases import EvaluationCase, Probe
from meg_editor.data.splits import Split
from meg_editor.data.world.facts import Fact, World, load_world
from meg_editor.requests.request import EditRequest


def pseudo_requests(world: World | None = None, count: int = 800) -> list[EditRequest]:
    """Facts for tuning encoders (section 4.1 a): never edited, never in TEST phrasings.

    Example:
        >>> len(pseudo_requests(count=8))
        8
    """
    world = world or load_world()
    facts = random.Random(1).sample(world.in_split("pseudo"), count)

    def rephrase(fact: Fact) -> list[str]:
        return [form.format(fact.subject) for form in world.tuning_phrasings(fact.relation)]

    return _tuning_requests(world, facts, rephrase, seed=1)


def calibration_requests(world: World | None = None, count: int = 400) -> list[EditRequest]:
    """Facts for choosing thresholds: neither edited nor tuned on, never in TEST phrasings.

    Their rephrases are phrasings that are new to the encoder, their targets are false.

    Example:
        >>> len(calibration_requests(count=8))
        8
    """
    world = world or load_world()
    facts = random.Random(2).sample(world.in_split("calibration"), count)
    requests = _tuning_requests(world, facts, world.calibration_prompts, seed=2)
    rng = random.Random(2)
    return [
        dataclasses.replace(request, target_new=rng.choice(_other_answers(world, fact)))
        for request, fact in zip(requests, facts, strict=True)
    ]


def reference_texts(world: World | None = None) -> list[str]:
    """Sentences of the reference world, of facts which are never edited."""
    world = world or load_world()
    facts = world.in_split("pseudo", "common")
    return [f"{world.prompts(fact, 'edit')[0]} {fact.answer}" for fact in facts]


def reference_split(world: World) -> Split:
    """The facts of the fitting stages; those to edit are drawn by `edit_cases`."""
    pseudo, calibration = (
        tuple(map(EvaluationCase.from_request, requests))
        for requests in (pseudo_requests(world), calibration_requests(world))
    )
    return Split((), pseudo, calibration)


def edit_cases(world: World, count: int, seed: int) -> list[EvaluationCase]:
    """`count` counterfactual edits with the questions that evaluate them.

    Real and made-up facts; each target is another answer of the same relation.
    Paraphrases are the TEST phrasings. Locality prompts ask about facts that are not edited, in
    EDIT phrasings: the same relation of another subject, another relation of the same subject,
    and common knowledge; none of them is a fact of the fitting stages. An edited birthplace
    implies another country of birth: that is a Portability question, in the TEST phrasings, and
    never a Locality question.

    Raises:
        ValueError: more edits than the world has facts for.
    """
    facts = world.in_split("edit")
    if not 1 <= count <= len(facts):
        raise ValueError(f"edits: expected 1 to {len(facts)} (the world's facts), got {count}")
    rng = random.Random(seed)
    chosen = rng.sample(facts, count)
    edited = set(chosen)
    moved = {fact.subject for fact in chosen if fact.relation == "birthplace"}
    implied = {fact for fact in world.by_relation["birth_country"] if fact.subject in moved}
    countries = {fact.answer: fact.subject for fact in world.by_relation["capital"]}
    common = world.in_split("common")
    cases = []
    for fact in chosen:
        peers = world.by_relation[fact.relation]
        neighbours = [f for f in peers if f.split == "edit" and f not in edited]
        siblings = [f for f in world.by_subject[fact.subject] if f not in edited]
        locality = {
            "same_relation": _asked(world, neighbours, rng),
            "same_subject": _asked(world, siblings, rng, implied),
            "unrelated": _asked(world, [f for f in common if f.relation != "birth_country"], rng),
        }
        request = EditRequest(
            prompt=rng.choice(world.prompts(fact, "edit")),
            target_new=rng.choice(_other_answers(world, fact)),
            subject=fact.subject,
        )
        hops = _two_hops(world, fact, countries.get(request.target_new))
        statement, question = _both_ways(world, fact)
        cases.append(
            EvaluationCase(
                request,
                truth=fact.answer,
                paraphrases=tuple(world.prompts(fact, "test")),
                locality={kind: probes for kind, probes in locality.items() if probes},
                portability={"two_hop": hops} if hops else {},
                statement=statement,
                question=question,
            )
        )
    return cases


def _both_ways(world: World, fact: Fact) -> tuple[str | None, str | None]:
    """The first EDIT phrasing which is a statement, and the first which is a question."""
    prompts = world.prompts(fact, "edit")
    statements = (prompt for prompt in prompts if not prompt.endswith("?"))
    questions = (prompt for prompt in prompts if prompt.endswith("?"))
    return next(statements, None), next(questions, None)


def _other_answers(world: World, fact: Fact) -> list[str]:
    return [answer for answer in world.answers[fact.relation] if answer != fact.answer]


def _asked(
    world: World,
    facts: Sequence[Fact],
    rng: random.Random,
    unless: Collection[Fact] = frozenset(),
) -> tuple[Probe, ...]:
    """One of `facts` in one of its EDIT phrasings; nothing if that one is in `unless`."""
    if not facts:
        return ()
    fact = rng.choice(facts)
    prompt = rng.choice(world.prompts(fact, "edit"))
    return () if fact in unless else (Probe(prompt, (fact.answer,)),)


def _two_hops(world: World, fact: Fact, country: str | None) -> tuple[Probe, ...]:
    """The country of birth, where the birthplace `fact` becomes the capital of `country`."""
    if fact.relation != "birthplace" or country is None:
        return ()
    return tuple(
        Probe(prompt, (country,))
        for sibling in world.by_subject[fact.subject]
        if sibling.relation == "birth_country"
        for prompt in world.prompts(sibling, "test")
    )


def _tuning_requests(
    world: World, facts: Sequence[Fact], rephrase: Callable[[Fact], list[str]], seed: int
) -> list[EditRequest]:
    """Each fact in an EDIT phrasing with its rephrases, and other facts as hard negatives.

    These are a fact of a similar subject in the same relation and all other facts about the
    subject, never one of `facts` themselves, which may be treated as edited.
    """
    rng = random.Random(seed)
    taken = set(facts)
    requests = []
    for fact in facts:
        prompt = rng.choice(world.prompts(fact, "edit"))
        peers = [
            other
            for other in world.by_relation[fact.relation]
            if other.split == fact.split and other is not fact
        ]
        peers = [other for other in peers if other not in taken] or peers
        namesakes = [other for other in peers if _share_a_word(other.subject, fact.subject)]
        siblings = [other for other in world.by_subject[fact.subject] if other not in taken]
        negatives = [*rng.sample(namesakes or peers, min(1, len(peers))), *siblings]
        requests.append(
            EditRequest(
                prompt=prompt,
                target_new=fact.answer,
                subject=fact.subject,
                rephrases=tuple(text for text in rephrase(fact) if text != prompt),
                locality_prompts=tuple(
                    rng.choice(world.tuning_phrasings(other.relation)).format(other.subject)
                    for other in negatives
                ),
            )
        )
    return requests


def _share_a_word(first: str, second: str) -> bool:
    return bool(set(first.split()) & set(second.split()))


def sweep_requests(
    count: int, seed: int, world: World | None = None, real: bool = False
) -> list[EditRequest]:
    """Counterfactual edits of calibration facts, with PSEUDO paraphrases: for choosing layers and
    hyper-parameters without touching what is edited or tested.

    Args:
        real: only facts which any pretrained LLM can know, no made-up people and companies.

    Raises:
        ValueError: more than there are such facts.
    """
    world = world or load_world()
    rng = random.Random(seed)
    requests = []
    facts = [fact for fact in world.in_split("calibration") if not (real and fact.made_up)]
    if not 0 <= count <= len(facts):
        raise ValueError(f"count: expected 0 to {len(facts)} (the facts to try), got {count}")
    for fact in rng.sample(facts, count):
        requests.append(
            EditRequest(
                prompt=rng.choice(world.prompts(fact, "edit")),
                target_new=rng.choice(_other_answers(world, fact)),
                subject=fact.subject,
                rephrases=tuple(world.prompts(fact, "pseudo")),
            )
        )
    return requests
