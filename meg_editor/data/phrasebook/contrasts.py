"""Texts that are of one kind or the other by themselves: last turns, and system texts."""

from __future__ import annotations

import random

from meg_editor.data.phrasebook.dialogues import FURTHER, NEXT
from meg_editor.data.phrasebook.kinds import Relation, read_lists
from meg_editor.data.phrasebook.phrasebook import FOLLOW_UPS, SYSTEMS, Phrasebook

_ELLIPTIC = 100


def last_turns(book: Phrasebook, rng: random.Random) -> tuple[list[str], list[str]]:
    """Those which go back to an earlier turn, and those which do not.

    They are those of the phrasebook's dialogues and further ones: a verifier that was trained on
    all of them found fewer follow-ups. Some of the first name a subject or a relation and leave the
    rest to the turn before.

    Example:
        >>> back, other = last_turns(Phrasebook.load(), random.Random(0))
        >>> back[0], other[0]
        ('Are you sure?', 'Thanks!')
    """
    said = read_lists(*FOLLOW_UPS, "last_turns.yaml")

    def relation() -> Relation:
        return rng.choice(rng.choice(book.kinds).relations)

    def filled(text: str) -> str:
        question = rng.choice(relation().questions).format(name())
        text = text.replace("{other}", question)
        return text.replace("{a}", answer()).replace("{b}", answer())

    def answer() -> str:
        return rng.choice(relation().answers)

    def name() -> str:
        return rng.choice(rng.choice(book.kinds).subjects)

    def elliptic() -> str:
        if rng.random() < 0.5:
            return rng.choice(NEXT).format(name())
        kind = rng.choice(book.kinds)
        statement = rng.choice(rng.choice(kind.relations).statements)
        ending = kind.by_pronoun(statement).format(name())
        return rng.choice(FURTHER).format(ending[:1].lower() + ending[1:])

    back = [*map(filled, said["asks"]), *(elliptic() for _ in range(_ELLIPTIC))]
    return back, list(map(filled, said["other"]))


def system_texts() -> tuple[list[str], list[str]]:
    """Those under which a question is answered, and those which give another task.

    Example:
        >>> usual, tasks = system_texts()
        >>> usual[0]
        'You are a helpful assistant.'
    """
    given = read_lists(*SYSTEMS, "further_systems.yaml")
    return given["usual"], given["tasks"]
