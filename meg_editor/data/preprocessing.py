"""Filters of evaluation cases (A.9): every function takes cases and returns fewer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

from meg_editor.data.cases import EvaluationCase
from meg_editor.data.relations import Relations

Cases = Sequence[EvaluationCase]


def one_per_subject(cases: Cases) -> list[EvaluationCase]:
    """The first fact of each subject: several in ZsRE may be paraphrases of one fact.

    Example:
        >>> from meg_editor import EditRequest
        >>> prompts = ("Ada was born in", "Ada died in")
        >>> len(one_per_subject([EvaluationCase(EditRequest(p, "x", "Ada")) for p in prompts]))
        1
    """
    return _first(cases, subject_key)


def without_conflicts(cases: Cases) -> list[EvaluationCase]:
    """The first case of each prompt: CounterFact repeats some, with other targets too."""
    return _first(cases, lambda case: case.request.key)


def _first(cases: Cases, name: Callable[[EvaluationCase], str]) -> list[EvaluationCase]:
    """The first case of each name, in order."""
    first: dict[str, EvaluationCase] = {}
    for case in cases:
        first.setdefault(name(case), case)
    return list(first.values())


def without_false_locality(
    cases: Cases, relations: Relations | None = None
) -> list[EvaluationCase]:
    """`cases` without locality prompts which ask for an edit of the same `cases`.

    Answers to those are meant to change. Such a prompt is an edited prompt, a paraphrase of one, or
    an edit in another phrasing of its relation: "X is a native speaker of" asks for the edit "The
    mother tongue of X is".

    Args:
        relations: phrasings of the data set; default: those of `cases`.
    """
    edited = edited_keys(cases, relations or Relations(cases))
    return [without_probes(case, edited) for case in cases]


def edited_keys(cases: Cases, relations: Relations | None = None) -> set[str]:
    """The keys of all texts which ask for an edit of `cases`.

    Args:
        relations: phrasings in which they ask for it too.
    """
    return {
        key(text)
        for case in cases
        for text in (
            case.request.prompt,
            *case.paraphrases,
            *(relations.same(case) if relations else ()),
        )
    }


def without_probes(case: EvaluationCase, keys: Collection[str]) -> EvaluationCase:
    """`case` without the locality prompts whose `key` is one of `keys`."""
    locality = {
        kind: tuple(probe for probe in probes if key(probe.prompt) not in keys)
        for kind, probes in case.locality.items()
    }
    left = {kind: probes for kind, probes in locality.items() if probes}
    return case if left == case.locality else dataclasses.replace(case, locality=left)


def locality_keys(cases: Iterable[EvaluationCase]) -> set[str]:
    """`key` of every locality prompt."""
    probes = (probe for case in cases for kind in case.locality.values() for probe in kind)
    return {key(probe.prompt) for probe in probes}


def key(text: str) -> str:
    """A text without case, repeated white space and its final "?" or ".".

    Example:
        >>> key("Where was  Ada born?")
        'where was ada born'
    """
    return " ".join(text.casefold().split()).rstrip(" ?.")


def subject_key(case: EvaluationCase) -> str:
    """The subject, or else the prompt."""
    return key(case.request.subject or case.request.prompt)
