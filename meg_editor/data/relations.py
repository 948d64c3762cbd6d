"""What relation a prompt asks for, told by its wording: "{} is a native of" is a wording."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meg_editor.data.cases import EvaluationCase
from meg_editor.data.groups import groups


class Relations:
    """The wordings in which facts are given, and which of them ask for the same.

    Two wordings ask for the same where a data set uses them in one relation; "{} is developed by"
    is used in several. Where it names none, they do if one is used in a paraphrase of the other,
    or both in paraphrases of a third, and so on: rather too many are taken for the same.
    """

    def __init__(self, cases: Sequence[EvaluationCase]) -> None:
        self._relations: dict[str, set[str]] = {}
        self._wordings: dict[str, list[str]] = {}
        for case, relation in zip(cases, _names(cases), strict=True):
            if wording := _wording(case, case.request.prompt):
                named = self._relations.setdefault(wording, set())
                if relation not in named:
                    named.add(relation)
                    self._wordings.setdefault(relation, []).append(wording)

    def same(self, case: EvaluationCase) -> list[str]:
        """Prompts which ask for the fact of `case`, its own among them where it has a wording."""
        return [wording.replace("{}", _subject(case)) for wording in self._alike(case)]

    def others(self, case: EvaluationCase, count: int, rng: random.Random) -> list[str]:
        """Up to `count` prompts which ask for something else about the subject of `case`."""
        if not (alike := self._alike(case)):
            return []
        other = [wording for wording in self._relations if wording not in alike]
        chosen = rng.sample(other, min(count, len(other)))
        return [wording.replace("{}", _subject(case)) for wording in chosen]

    def _alike(self, case: EvaluationCase) -> dict[str, None]:
        """The wordings in which `case` can be asked for, in order."""
        if not (own := _wording(case, case.request.prompt)):
            return {}
        named = self._relations.get(own, set()) | ({case.relation} if case.relation else set())
        found = {own: None}
        for relation in sorted(named):
            found.update(dict.fromkeys(self._wordings.get(relation, [])))
        return found


def _names(cases: Sequence[EvaluationCase]) -> list[str]:
    """For each case the name of its relation, or that of all which have wordings in common."""
    used = [[] if case.relation else _wordings(case) for case in cases]
    return [
        case.relation or f"like case {group}"
        for case, group in zip(cases, groups(used), strict=True)
    ]


def _wordings(case: EvaluationCase) -> list[str]:
    found = (_wording(case, text) for text in (case.request.prompt, *case.paraphrases))
    return [wording for wording in found if wording]


def _subject(case: EvaluationCase) -> str:
    return case.request.subject or ""


def _wording(case: EvaluationCase, text: str) -> str | None:
    """The text with {} for its subject; None where it does not name one."""
    subject = _subject(case)
    return text.replace(subject, "{}") if subject and subject in text else None
