"""Edits, pseudo-knowledge and test cases drawn from the reference world."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meg_editor.data.cases import EvaluationCase
from meg_editor.data.reference_world import Fact, World, load_world
from meg_editor.requests import EditRequest


def pseudo_requests(world: World | None = None) -> list[EditRequest]:
    """Facts for tuning encoders (section 4.1 a): never edited, never in TEST phrasings."""
    world = world or load_world()
    return _tuning_requests(world, world.in_split("pseudo"), seed=1)


def calibration_requests(world: World | None = None, count: int = 400) -> list[EditRequest]:
    """Facts for choosing thresholds: neither edited nor tuned on, never in TEST phrasings."""
    world = world or load_world()
    facts = random.Random(2).sample(world.in_split("calibration"), count)
    return _tuning_requests(world, facts, seed=2)


def edit_cases(
    world: World, count: int, seed: int, groups: Sequence[str] = ("edit",)
) -> list[EvaluationCase]:
    """`count` counterfactual edits with everything needed to judge them.

    Real and made-up facts as they come; each target is another answer of the same relation.
    Paraphrases are the TEST phrasings. Locality prompts ask about facts that are not edited, in
    EDIT phrasings: the same relation of another subject, another relation of the same subject,
    and common knowledge.

    Raises:
        ValueError: more edits than the world has facts for.
    """
    facts = world.in_split("edit")
    if not 1 <= count <= len(facts):
        raise ValueError(f"edits: expected 1 to {len(facts)} (the world's facts), got {count}")
    rng = random.Random(seed)
    chosen = rng.sample(facts, count)
    edited = set(chosen)
    common = world.in_split("common")
    cases = []
    for fact in chosen:
        answers = [a for a in world.answers[fact.relation] if a != fact.answer]
        neighbours = [f for f in world.by_relation[fact.relation] if f not in edited]
        siblings = [f for f in world.by_subject[fact.subject] if f not in edited]
        locality = {
            "same_relation": _asked(world, neighbours, rng),
            "same_subject": _asked(world, siblings, rng),
            "unrelated": _asked(world, [f for f in common if f.relation != "birth_country"], rng),
        }
        request = EditRequest(
            prompt=rng.choice(world.prompts(fact, "edit")),
            target_new=rng.choice(answers),
            subject=fact.subject,
        )
        cases.append(
            EvaluationCase(
                request,
                truth=fact.answer,
                paraphrases=tuple(world.prompts(fact, "test")),
                locality={kind: prompts for kind, prompts in locality.items() if prompts},
            )
        )
    return cases


def _asked(world: World, facts: Sequence[Fact], rng: random.Random) -> tuple[str, ...]:
    """One of `facts` in one of its EDIT phrasings, if there is any."""
    return (rng.choice(world.prompts(rng.choice(facts), "edit")),) if facts else ()


def _tuning_requests(world: World, facts: Sequence[Fact], seed: int) -> list[EditRequest]:
    """Each fact with its other EDIT and PSEUDO phrasings, and neighbours as hard negatives."""
    rng = random.Random(seed)
    requests = []
    for fact in facts:
        phrasings = [*world.prompts(fact, "edit"), *world.prompts(fact, "pseudo")]
        prompt = phrasings.pop(rng.randrange(3))
        neighbours = [
            f for f in world.by_relation[fact.relation]
            if f.split == fact.split and f is not fact and _share_a_word(f.subject, fact.subject)
        ] or [f for f in world.by_relation[fact.relation] if f.split == fact.split]
        siblings = [f for f in world.by_subject[fact.subject] if f is not fact]
        negatives = [rng.choice(neighbours), *siblings]
        requests.append(
            EditRequest(
                prompt=prompt,
                target_new=fact.answer,
                subject=fact.subject,
                rephrases=tuple(phrasings),
                locality_prompts=tuple(
                    rng.choice(world.prompts(other, rng.choice(("edit", "pseudo"))))
                    for other in negatives
                    if other is not fact
                ),
            )
        )
    return requests


def _share_a_word(first: str, second: str) -> bool:
    return bool(set(first.split()) & set(second.split()))


def sweep_requests(count: int, seed: int, world: World | None = None) -> list[EditRequest]:
    """Counterfactual edits of calibration facts, with PSEUDO paraphrases: for choosing layers and
    hyper-parameters without touching what is edited or tested.
    """
    world = world or load_world()
    rng = random.Random(seed)
    requests = []
    for fact in rng.sample(world.in_split("calibration"), count):
        answers = [answer for answer in world.answers[fact.relation] if answer != fact.answer]
        requests.append(
            EditRequest(
                prompt=rng.choice(world.prompts(fact, "edit")),
                target_new=rng.choice(answers),
                subject=fact.subject,
                rephrases=tuple(world.prompts(fact, "pseudo")),
            )
        )
    return requests
