"""Dialogues on a fact, whose last turn goes back to it or to something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from meg_editor.requests.turns import Turn, dialogue

_LONGER = 0.3  # of the dialogues: a turn between the question and the last one
_NEXT = ("And {}?", "What about {}?", "and {}", "How about {}?", "And the same for {}, please.")
_FURTHER = ("And {}?", "{}", "And {} …", "ok, and {}?")

Draw = Callable[[], str]


@dataclass(frozen=True)
class FollowUps:
    """What is said after a question.

    Attributes:
        replies: of the assistant, with `{a}` the answer and `{b}` another one.
        asks: turns of the user behind which the answer is given (again).
        other: turns behind which it is not, with `{other}` another question.
    """

    replies: tuple[str, ...]
    asks: tuple[str, ...]
    other: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What is asked in a dialogue, and what is near.

    Attributes:
        subject: of the fact.
        question: draws a question for the fact.
        ending: draws a statement of the fact without its end and with a pronoun.
        neighbour: of another subject, the name and a question for the same relation.
        sibling: of another relation of the subject, a question and such a statement; None without.
        other: draws a question on something else.
        answers: the fact's answer and another one.
    """

    subject: str
    question: Draw
    ending: Draw
    neighbour: tuple[str, str]
    sibling: tuple[str, str] | None
    other: Draw
    answers: tuple[str, str]


def draw_dialogue(rng: random.Random, said: FollowUps, asked: Asked, asks: bool) -> str:
    """A dialogue on a fact; `asks`: the next reply states the fact."""
    chance = rng.random()
    name, neighbours = asked.neighbour
    if asks and chance < 0.15:
        return _dialogue(rng, said, asked, neighbours, rng.choice(_NEXT).format(asked.subject))
    if asked.sibling and chance < 0.3:
        question, statement = asked.sibling
        ways = (question, asked.ending()) if asks else (asked.question(), statement)
        end = ways[1][:1].lower() + ways[1][1:]
        return _dialogue(rng, said, asked, ways[0], rng.choice(_FURTHER).format(end))
    if not asks and chance < 0.45:
        last = rng.choice(_NEXT).format(name)
        return _dialogue(rng, said, asked, asked.question(), last)
    between = rng.choice(said.asks) if rng.random() < _LONGER else None
    if not asks and chance < 0.55:  # back to another question
        between, last = asked.other(), rng.choice(said.asks)
    else:
        last = rng.choice(said.asks if asks else said.other).replace("{other}", asked.other())
    return _dialogue(rng, said, asked, asked.question(), last, between)


def _dialogue(
    rng: random.Random,
    said: FollowUps,
    asked: Asked,
    question: str,
    last: str,
    between: str | None = None,
) -> str:
    def reply() -> str:
        right, wrong = asked.answers
        return rng.choice(said.replies).replace("{a}", right).replace("{b}", wrong)

    turns = [Turn(text, reply()) for text in (question, between) if text]
    return dialogue([*turns, Turn(last)])
