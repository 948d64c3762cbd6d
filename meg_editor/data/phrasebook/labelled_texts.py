"""Texts that are of one kind or the other by themselves: last turns, and system texts."""

from __future__ import annotations

import random
import re

from meg_editor.data.phrasebook.dialogues import NEXT, draw_further
from meg_editor.data.phrasebook.kinds import Kind, read_lists
from meg_editor.data.phrasebook.phrasebook import FOLLOW_UPS, SYSTEMS, Phrasebook

_ELLIPTIC = 800  # turns that leave their subject or their relation to an earlier one
_NAMED, _STATED = 0.15, 0.15  # of these: they name a subject; they begin a statement
_WHOLE = 250  # turns that do not go back: questions which leave nothing to an earlier one
_OBJECTS = {"he": "him", "she": "her", "it": "it", "they": "them"}
_BEHIND = re.compile(r" (?:of|in|by|for|from|to|at|on|with) \{\}(?=\W*$)")
_OPENINGS = ("", "", "", "And ", "and ", "ok, and ", "Thanks! And ", "Interesting. ", "thx. ")


def last_turns(book: Phrasebook, rng: random.Random) -> tuple[list[str], list[str]]:
    """Those which go back to an earlier turn, and those which do not.

    `last_turns.yaml` is for this alone: trained on its turns too, the verifier found fewer
    follow-ups.

    Example:
        >>> back, other = last_turns(Phrasebook.load(), random.Random(0))
        >>> back[0], other[0]
        ('Are you sure?', 'Thanks!')
    """
    said = read_lists(*FOLLOW_UPS, "last_turns.yaml")

    def filled(text: str) -> str:
        kind = rng.choice(book.kinds)
        relation = rng.choice(kind.relations)
        question = rng.choice(relation.questions).format(rng.choice(kind.subjects))
        text = text.replace("{other}", question)
        first, second = rng.choice(relation.answers), rng.choice(relation.answers)
        return text.replace("{a}", first).replace("{b}", second)

    def whole() -> str:
        return _opened(rng, filled("{other}"))

    elliptic = (_elliptic(rng, rng.choice(book.kinds)) for _ in range(_ELLIPTIC))
    back = [*map(filled, said["asks"]), *elliptic]
    return back, [*map(filled, said["other"]), *(whole() for _ in range(_WHOLE))]


def _elliptic(rng: random.Random, kind: Kind) -> str:
    relation, subject, chance = rng.choice(kind.relations), rng.choice(kind.subjects), rng.random()
    if chance < _NAMED:
        return rng.choice(NEXT).format(subject)
    if chance < _NAMED + _STATED:
        statement = kind.by_pronoun(rng.choice(relation.statements))
        return draw_further(rng, statement.format(subject))
    return _opened(rng, _without_subject(rng, kind, rng.choice(relation.questions)))


def _opened(rng: random.Random, question: str) -> str:
    opening = rng.choice(_OPENINGS)
    if opening.lower().endswith("and ") or rng.random() < 0.3:
        question = question[:1].lower() + question[1:]
    return opening + (question.rstrip("?") if rng.random() < 0.3 else question)


def _without_subject(rng: random.Random, kind: Kind, question: str) -> str:
    """The question with a pronoun or a noun for its subject, or with nothing."""
    if rng.random() < 0.35:
        shorter = _BEHIND.sub("", question.replace("{}'s ", "the "))
        if "{}" not in shorter:
            return shorter
    he, his = kind.pronouns
    noun = f"that {rng.choice(kind.name.split('_or_')).replace('_', ' ')}"
    possessive, nominative, objective = (
        (f"{noun}'s", noun, noun) if rng.random() < 0.25 else (his, he, _OBJECTS[he])
    )
    question = re.sub(r"\{\}'?s\b", possessive, question)
    return re.sub(r"\{\}(?=\W*$)", objective, question).replace("{}", nominative)


def system_texts() -> tuple[list[str], list[str]]:
    """Those under which a question is answered, and those which give another task.

    Example:
        >>> usual, tasks = system_texts()
        >>> usual[0]
        'Assistant.'
    """
    given = read_lists(*SYSTEMS, "further_systems.yaml")
    return given["usual"], given["tasks"]
