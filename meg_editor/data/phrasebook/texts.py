"""Texts which get to a fact: a second sentence, notes on several subjects."""

from __future__ import annotations

import random

from meg_editor.data.phrasebook.kinds import Kind

_HEADINGS = ("Notes on {}:", "{}:", "About {}:", "Facts on {}:", "* {} -", "{}\n", "## {}\n")


def running_text(rng: random.Random, kind: Kind, statement: str, subject: str) -> str:
    """A text which gets to the fact in its second sentence, often with a pronoun."""
    if rng.random() < 0.7:
        statement = kind.by_pronoun(statement)
    relation = rng.choice(kind.relations)
    first = f"{rng.choice(relation.statements).format(subject)} {rng.choice(relation.answers)}."
    begin = rng.choice(("", f"Tell me about {subject}. ", f"{subject}\n\n", "Sure! "))
    return f"{begin}{first} {statement.format(subject)}"


def notes(rng: random.Random, kind: Kind, statement: str, subject: str, begun: bool = True) -> str:
    """Notes on several subjects, the last of which ends with the statement, or its heading."""
    heading, others = rng.choice(_HEADINGS), [s for s in kind.subjects if s != subject]
    further = rng.sample(kind.relations, rng.randint(0, min(3, len(kind.relations))))
    statements = [rng.choice(relation.statements) for relation in further]
    answers = [relation.answers for relation in further]
    known = [relation.answers for relation in kind.relations if statement in relation.statements]
    place = rng.randint(0, len(statements))
    statements.insert(place, statement)
    answers.insert(place, known[0])

    def sentences(name: str, count: int) -> str:
        texts = [kind.by_pronoun(text).format(name) for text in statements[:count]]
        said = zip(texts, answers, strict=False)
        return " ".join(f"{text} {rng.choice(options)}." for text, options in said)

    lines = [
        f"{heading.format(name)} {sentences(name, len(statements))}"
        for name in rng.sample(others, rng.randint(1, min(3, len(others))))
    ]
    last = heading.format(subject)
    if begun:
        last = f"{last} {sentences(subject, place)}".rstrip()
        last = f"{last} {kind.by_pronoun(statement).format(subject)}"
    return "\n".join([*lines, last])
