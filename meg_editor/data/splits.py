"""Disjoint sets of facts: edited ones, those which tune encoders, those which calibrate."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from meg_editor.data.cases import EvaluationCase, Probe
from meg_editor.data.groups import groups
from meg_editor.data.preprocessing import (
    edited_keys,
    key,
    subject_key,
    without_false_locality,
    without_probes,
)
from meg_editor.data.relations import Relations
from meg_editor.requests.request import EditRequest

# Shares of all facts, in percent.
_PSEUDO, _CALIBRATION = 20, 10


@dataclass(frozen=True)
class Split:
    """Three sets of facts without a common subject, prompt or paraphrase.

    Attributes:
        edited: the pool which edits are sampled from.
        pseudo: tune encoders and train hypernetworks.
        calibration: choose thresholds and settings.
    """

    edited: tuple[EvaluationCase, ...]
    pseudo: tuple[EvaluationCase, ...]
    calibration: tuple[EvaluationCase, ...]


def split_cases(
    cases: Sequence[EvaluationCase], training: Sequence[EvaluationCase] | None = None
) -> Split:
    """A fixed split of `cases`: no calibration fact is edited under any seed.

    Facts which share a subject or a text stay together. The digest of such a group decides where
    it goes, so that neither the order of a file nor the number of edits matters. CounterFact asks
    the same locality question beside many facts: those for editing lose what the others know, and
    the others lose what asks for a fact that may be edited.

    Args:
        training: other facts to tune and calibrate on (ZsRE has a training file); all of `cases`
            are then for editing, and facts which have something in common with them are left out.

    Example:
        >>> cases = [EvaluationCase(EditRequest(f"Town {n} is in", "Peru")) for n in range(100)]
        >>> split = split_cases(cases)
        >>> len(split.edited) + len(split.pseudo) + len(split.calibration)
        100
    """
    if training is None:
        parts: dict[str, list[EvaluationCase]] = {"edited": [], "pseudo": [], "calibration": []}
        for case, group in zip(cases, _groups(cases), strict=True):
            parts[_part(group)].append(case)
        return _apart(parts["edited"], parts["pseudo"], parts["calibration"])
    together = [*cases, *training]
    names = _groups(together)
    taken = set(names[: len(cases)])
    pseudo: list[EvaluationCase] = []
    calibration: list[EvaluationCase] = []
    for case, group in zip(training, names[len(cases) :], strict=True):
        if group not in taken:
            share = 100 - 100 * _PSEUDO // (_PSEUDO + _CALIBRATION)
            where = calibration if _percent(group) < share else pseudo
            where.append(case)
    return _apart(cases, pseudo, calibration)


def choose(cases: Sequence[EvaluationCase], count: int, seed: int) -> list[EvaluationCase]:
    """A sample of `count` cases, those with paraphrases first, without locality prompts they edit.

    Raises:
        ValueError: there are fewer.

    Example:
        >>> cases = [EvaluationCase(EditRequest(f"Town {n} is in", "Peru")) for n in range(9)]
        >>> len(choose(cases, count=3, seed=0))
        3
    """
    if not 1 <= count <= len(cases):
        raise ValueError(f"edits: expected 1 to {len(cases)} (all there are), got {count}")
    shuffled = random.Random(seed).sample(list(cases), len(cases))
    chosen = sorted(shuffled, key=lambda case: not case.paraphrases)[:count]
    return without_false_locality(chosen, Relations(cases))


def tuning_requests(
    cases: Sequence[EvaluationCase],
    count: int,
    seed: int,
    relations: Relations | None = None,
    others: int = 4,
    unless: Collection[str] = (),
) -> list[EditRequest]:
    """Up to `count` facts with their paraphrases and locality prompts, for a fitting stage.

    The locality prompts of the data set ask the same about other subjects. Added to them are
    prompts that ask something else about the same subject, in phrasings of other relations. None
    asks for one of the other facts, which may be treated as edited.

    Args:
        relations: the phrasings; default: those of `cases`.
        others: maximum number of added prompts per fact.
        unless: `preprocessing.key` of what is no locality prompt, such as questions asked later.
    """
    relations, rng = relations or Relations(cases), random.Random(seed)
    usable = [case for case in cases if case.paraphrases]
    rng.shuffle(usable)
    extended = [
        dataclasses.replace(
            case,
            locality={
                **case.locality,
                "something else": tuple(map(Probe, relations.others(case, others, rng))),
            },
        )
        for case in usable[:count]
    ]
    return [
        dataclasses.replace(
            case.request,
            rephrases=case.paraphrases,
            locality_prompts=tuple(p.prompt for ps in case.locality.values() for p in ps),
        )
        for case in (without_probes(c, unless) for c in without_false_locality(extended, relations))
    ]


def known_texts(cases: Iterable[EvaluationCase]) -> list[str]:
    """Prompts of `cases` with their true answers where given, and never an edit's target.

    Example:
        >>> edit = EditRequest("The capital of France is", "Lima")
        >>> known_texts([EvaluationCase(edit, truth="Paris")])
        ['The capital of France is Paris']
    """
    texts: dict[str, None] = {}
    for case in cases:
        answer = f" {case.truth}" if case.truth else ""
        for prompt in (case.request.prompt, *case.paraphrases):
            texts[prompt + answer] = None
        for probe in (probe for probes in case.locality.values() for probe in probes):
            texts[" ".join([probe.prompt, *probe.answers[:1]])] = None
    return list(texts)


def _apart(
    edited: Sequence[EvaluationCase],
    pseudo: Sequence[EvaluationCase],
    calibration: Sequence[EvaluationCase],
) -> Split:
    """The split without locality prompts that stand on both sides of it."""
    facts = edited_keys(edited)
    fitted = [[without_probes(case, facts) for case in part] for part in (pseudo, calibration)]
    known = {key(text) for part in fitted for case in part for text in case.texts}
    return Split(tuple(without_probes(case, known) for case in edited), *map(tuple, fitted))


def _groups(cases: Sequence[EvaluationCase]) -> list[str]:
    """For each case the name of its group: of those which share a subject or a text."""
    rows = [
        [
            f"subject {subject_key(case)}",
            *(f"text {key(text)}" for text in (case.request.prompt, *case.paraphrases)),
        ]
        for case in cases
    ]
    first = groups(rows)
    names: dict[int, str] = {}
    for case, group in zip(cases, first, strict=True):
        name = key(case.request.prompt)
        names[group] = min(names.get(group, name), name)
    return [names[group] for group in first]


def _part(group: str) -> str:
    percent = _percent(group)
    if percent < _PSEUDO:
        return "pseudo"
    return "calibration" if percent < _PSEUDO + _CALIBRATION else "edited"


def _percent(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
