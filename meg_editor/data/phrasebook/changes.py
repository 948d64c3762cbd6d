"""Small changes of a question: after some it asks the same, after others something else."""

from __future__ import annotations

import random
import re

_ASKS_HOW = re.compile(
    r"^(Where|When|Why|How) (?=(?:is|are|was|were|do|does|did|has|have|can)\b)", re.I
)
_ASKS_WHICH = re.compile(r"^((?:In|On|At|From|To) )?(which|what) (\w+)\b", re.I)
_ADVERBS = ("Where", "When", "Why", "How", "With whom", "How often")
_TIMES = ("year", "month", "decade", "century", "season")
_PLACES = ("city", "country", "building", "street", "region")
_OTHER = (
    *("first", "second", "third", "former", "previous", "next", "future", "earliest", "deputy"),
    *("unofficial", "vice", "old", "last but one", "honorary", "second-best", "oldest", "youngest"),
)
_SAME = ("current", "present", "official", "actual", "exact", "correct", "right", "true")
_OTHER_TIMES = (
    *("in 1850", "before the war", "a hundred years ago", "until last year", "at the beginning"),
    *(
        "in the film",
        "in the Middle Ages",
        "originally",
        "in the next century",
        "ten years from now",
    ),
)
_NOW = ("right now", "today", "these days", "at the moment", "nowadays", "at present", "currently")
_HEAD = re.compile(r"\bthe (?=[a-z])", re.I)


def changed(rng: random.Random, question: str, subject: str) -> str:
    """Asks something else about the same: when and not where, the first one, a hundred years ago.

    Example:
        >>> changed(random.Random(1), "Where was Ada Lovelace born?", "Ada Lovelace")
        'When was Ada Lovelace born?'
    """
    adverb, noun = _ASKS_HOW.match(question), _ASKS_WHICH.match(question)
    if adverb and rng.random() < 0.7:
        other = rng.choice([word for word in _ADVERBS if word.lower() != adverb[1].lower()])
        return f"{other} {question[adverb.end() :]}"
    if noun and (noun[1] or noun[3] in _TIMES + _PLACES) and rng.random() < 0.7:
        others = _PLACES if noun[3] in _TIMES else _TIMES
        return question[: noun.start(3)] + rng.choice(others) + question[noun.end(3) :]
    other = _before_noun(rng, question, subject, _OTHER)
    return other or _at(rng, question, subject, _OTHER_TIMES)


def retold(rng: random.Random, question: str, subject: str) -> str:
    """Asks the same: misspelled, of today, or for the official one.

    Example:
        >>> retold(random.Random(0), "What is the capital of Peru?", "Peru")
        'What is the capital of Peru currently?'
    """
    chance = rng.random()
    if chance < 0.5:
        return misspelled(rng, question, subject)
    if chance < 0.75:
        return _before_noun(rng, question, subject, _SAME) or question
    return _at(rng, question, subject, _NOW)


def misspelled(rng: random.Random, text: str, subject: str) -> str:
    """One or two words misspelled, none of the subject.

    Example:
        >>> misspelled(random.Random(0), "What is the capital of Peru?", "Peru")
        'What is teh capital of Peru?'
    """
    for _ in range(rng.choice((1, 1, 2))):
        keep = text.find(subject)
        words = [
            word
            for word in re.finditer(r"[^\W\d_]{3,}", text)
            if keep < 0 or word.end() <= keep or word.start() >= keep + len(subject)
        ]
        if not words:
            return text
        word = rng.choice(words)
        letters = list(word[0])
        place = rng.randrange(1, len(letters) - 1) if len(letters) > 3 else 1
        change = rng.random()
        if change < 0.4:
            letters[place : place + 2] = reversed(letters[place : place + 2])
        elif change < 0.7:
            letters.pop(place)
        elif change < 0.85:
            letters.insert(place, letters[place])
        else:
            letters[place] = rng.choice("aeiounrst")
        text = text[: word.start()] + "".join(letters) + text[word.end() :]
    return text


def _before_noun(rng: random.Random, text: str, subject: str, words: tuple[str, ...]) -> str:
    """A word behind the first "the" which is not the subject's; nothing without one."""
    keep = text.lower().find(subject.lower())
    for found in _HEAD.finditer(text):
        rest = text[found.end() :]
        if found.end() != keep and not subject.lower().startswith(f"the {rest[:3].lower()}"):
            word = rng.choice(words)
            return f"{text[: found.end()]}{word} {rest}"
    return ""


def _at(rng: random.Random, text: str, subject: str, times: tuple[str, ...]) -> str:
    time = rng.choice(times)
    if text.endswith("?"):
        return f"{text[:-1]} {time}?"
    if not text.startswith(subject):
        text = text[:1].lower() + text[1:]
    return f"{time[:1].upper()}{time[1:]}, {text}"
