"""Relations that prompts ask for, by their phrasing: "{} is a native of" is a phrasing."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meg_editor.data.cases import EvaluationCase
from meg_editor.data.groups import groups


class Relations:
    """Phrasings of facts, grouped by the relation they ask for.

    Two phrasings ask for the same where a data set uses them in one relation; "{} is developed by"
    is used in several. Where it names none, they do if one is used in a paraphrase of the other,
    or both in paraphrases of a third, and so on: rather too many are taken for the same.

    Example:
        >>> from meg_editor import EditRequest
        >>> case = EvaluationCase(EditRequest("Ada was born in", "Lima", "Ada"), relation="birth")
        >>> other = EvaluationCase(EditRequest("Bo works as", "pilot", "Bo"), relation="job")
        >>> Relations([case, other]).others(case, 1, random.Random(0))
        ['Ada works as']
    """

    def __init__(self, cases: Sequence[EvaluationCase]) -> None:
        self._relations: dict[str, set[str]] = {}
        self._phrasings: dict[str, list[str]] = {}
        of_subject: dict[str, set[str]] = {}
        for case, relation in zip(cases, _names(cases), strict=True):
            of_subject.setdefault(_subject(case), set()).add(relation)
            if phrasing := _phrasing_of(case, case.request.prompt):
                named = self._relations.setdefault(phrasing, set())
                if relation not in named:
                    named.add(relation)
                    self._phrasings.setdefault(relation, []).append(phrasing)
        self._beside: dict[str, set[str]] = {}  # what subjects of a relation have too
        for relations in of_subject.values():
            for relation in relations if len(relations) > 1 else ():
                self._beside.setdefault(relation, set()).update(relations)

    def same(self, case: EvaluationCase) -> list[str]:
        """Prompts which ask for the fact of `case`, its own among them if it has a phrasing."""
        return [phrasing.replace("{}", _subject(case)) for phrasing in self._alike(case)]

    def others(
        self, case: EvaluationCase, count: int, rng: random.Random, *, fitting: bool = False
    ) -> list[str]:
        """Up to `count` prompts which ask for something else about the subject of `case`.

        Args:
            fitting: of relations alone which other subjects with that of `case` have too: no lake
                is asked for its mother tongue. Needs named relations, and subjects of several.
        """
        if not (alike := self._alike(case)):
            return []
        fit = self._beside.get(case.relation or "", set()) if fitting else None
        other = [
            phrasing
            for phrasing, named in self._relations.items()
            if phrasing not in alike and (fit is None or named <= fit)
        ]
        chosen = rng.sample(other, min(count, len(other)))
        return [phrasing.replace("{}", _subject(case)) for phrasing in chosen]

    def _alike(self, case: EvaluationCase) -> dict[str, None]:
        """Phrasings of the relations of `case`, in order."""
        if not (phrasing := _phrasing_of(case, case.request.prompt)):
            return {}
        named = self._relations.get(phrasing, set()) | ({case.relation} if case.relation else set())
        alike: dict[str, None] = {phrasing: None}
        for relation in sorted(named):
            alike.update(dict.fromkeys(self._phrasings.get(relation, [])))
        return alike


def _names(cases: Sequence[EvaluationCase]) -> list[str]:
    """For each case its relation, or else the name of a group with phrasings in common."""
    used = [[] if case.relation else _phrasings_of(case) for case in cases]
    return [
        case.relation or f"like case {group}"
        for case, group in zip(cases, groups(used), strict=True)
    ]


def _phrasings_of(case: EvaluationCase) -> list[str]:
    phrasings = (_phrasing_of(case, text) for text in (case.request.prompt, *case.paraphrases))
    return [phrasing for phrasing in phrasings if phrasing]


def _subject(case: EvaluationCase) -> str:
    return case.request.subject or ""


def _phrasing_of(case: EvaluationCase, text: str) -> str | None:
    """The text with {} for its subject; None where it does not name one."""
    subject = _subject(case)
    return text.replace(subject, "{}") if subject and subject in text else None
