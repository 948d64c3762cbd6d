"""What relation a prompt asks for, told by its wording: "{} is a native of" is a wording."""

from __future__ import annotations

import random
from collections.abc import Iterable

from meg_editor.data.cases import EvaluationCase


class Relations:
    """The wordings in which facts are given, and which of them ask for the same.

    Two wordings ask for the same where a data set uses them in one relation; "{} is developed by"
    is used in several. A wording that is never used in a named relation asks for its own.
    """

    def __init__(self, cases: Iterable[EvaluationCase]) -> None:
        self._relations: dict[str, set[str]] = {}
        for case in cases:
            if wording := _wording(case):
                found = self._relations.setdefault(wording, set())
                found |= {case.relation} if case.relation else set()
        self._wordings: dict[str, list[str]] = {}
        for wording, named in self._relations.items():
            for relation in named:
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

    def _alike(self, case: EvaluationCase) -> list[str]:
        if not (own := _wording(case)):
            return []
        named = self._relations.get(own, set()) | ({case.relation} if case.relation else set())
        found = {own: None}
        for relation in sorted(named):
            found.update(dict.fromkeys(self._wordings.get(relation, [])))
        return list(found)


def _subject(case: EvaluationCase) -> str:
    return case.request.subject or ""


def _wording(case: EvaluationCase) -> str | None:
    """The prompt with {} for its subject; None where it does not name one."""
    prompt, subject = case.request.prompt, _subject(case)
    return prompt.replace(subject, "{}") if subject and subject in prompt else None
