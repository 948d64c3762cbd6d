"""Dialogues on a fact, whose last turn goes back to it or to something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from meg_editor.requests.turns import Turn, dialogue

# Shares of the dialogues.
_ERRAND = 0.2  # the first turn is an errand, the last one goes on to a question
_NEIGHBOUR = 0.15  # the last turn names another subject
_SIBLING = 0.15  # it names another relation of the subject
_BACK = 0.1  # of those which do not ask for the fact: it goes back to another question
_LONGER = 0.3  # of the rest: a turn between the question and the last one
NEXT = ("And {}?", "What about {}?", "and {}", "How about {}?", "And the same for {}, please.")
_FURTHER = ("And {}?", "{}", "And {} …", "ok, and {}?")

Draw = Callable[[], str]


@dataclass(frozen=True)
class FollowUps:
    """What is said after a question.

    Attributes:
        replies: of the assistant, with `{a}` the answer and `{b}` another one.
        asks: turns of the user behind which the answer is given (again), with the same.
        other: turns behind which it is not, with `{other}` another question, too.
        errands: what else a user asks for, and the reply.
    """

    replies: tuple[str, ...]
    asks: tuple[str, ...]
    other: tuple[str, ...]
    errands: tuple[tuple[str, str], ...] = ()


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
        going_on: draws a turn behind an errand: it asks for the fact, if the dialogue is to.
        answers: the fact's answer and another one.
    """

    subject: str
    question: Draw
    ending: Draw
    neighbour: tuple[str, str]
    sibling: tuple[str, str] | None
    other: Draw
    going_on: Draw
    answers: tuple[str, str]


def draw_dialogue(rng: random.Random, said: FollowUps, asked: Asked, asks: bool) -> str:
    """A dialogue on a fact; `asks`: the next reply states the fact."""
    if said.errands and rng.random() < _ERRAND:
        return dialogue([Turn(*rng.choice(said.errands)), Turn(asked.going_on())])
    chance = rng.random()
    if chance < _NEIGHBOUR:
        name, neighbours = asked.neighbour
        first, name = (neighbours, asked.subject) if asks else (asked.question(), name)
        return _dialogue(rng, said, asked, first, rng.choice(NEXT).format(name))
    if chance < _NEIGHBOUR + _SIBLING and asked.sibling:
        question, ending = asked.sibling
        first, ending = (question, asked.ending()) if asks else (asked.question(), ending)
        return _dialogue(rng, said, asked, first, draw_further(rng, ending))
    if not asks and rng.random() < _BACK:
        last = rng.choice(said.asks)
        return _dialogue(rng, said, asked, asked.question(), last, asked.other())
    between = rng.choice(said.asks) if rng.random() < _LONGER else None
    last = rng.choice(said.asks if asks else said.other).replace("{other}", asked.other())
    return _dialogue(rng, said, asked, asked.question(), last, between)


def draw_further(rng: random.Random, ending: str) -> str:
    """A turn which begins a statement for the reply to end: "And its capital is?"."""
    return rng.choice(_FURTHER).format(ending[:1].lower() + ending[1:])


def _dialogue(
    rng: random.Random,
    said: FollowUps,
    asked: Asked,
    question: str,
    last: str,
    between: str | None = None,
) -> str:
    right, wrong = asked.answers

    def filled(text: str) -> str:
        return text.replace("{a}", right).replace("{b}", wrong)

    questions = [filled(text) for text in (question, between) if text]
    turns = [Turn(text, filled(rng.choice(said.replies))) for text in questions]
    return dialogue([*turns, Turn(filled(last))])
