"""Subjects of the phrasebook by kind, and their relations in many phrasings."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Relation:
    """A relation in its phrasings, each with `{}` for the subject."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """Subjects of one kind, and the relations they have."""

    name: str
    pronouns: tuple[str, str]
    subjects: tuple[str, ...]
    relations: tuple[Relation, ...]

    @property
    def is_person(self) -> bool:
        return self.pronouns[0] in ("he", "she") or self.name == "fictional_character"

    def besides(self, relation: Relation) -> list[Relation]:
        """Its other relations."""
        return [other for other in self.relations if other is not relation]

    def by_pronoun(self, statement: str) -> str:
        """The statement with a pronoun for its subject, where that begins it."""
        he, his = self.pronouns
        if statement.startswith("{}'s "):
            return f"{his.capitalize()} {statement[5:]}"
        return f"{he.capitalize()} {statement[3:]}" if statement.startswith("{} ") else statement


def read_yaml(name: str) -> Any:
    """The content of a file of this folder."""
    return yaml.safe_load(files(__package__).joinpath(name).read_text("utf-8"))


def read_lists(*names: str) -> dict[str, list[Any]]:
    """The lists of several files of this folder, joined by name."""
    joined: dict[str, list[Any]] = {}
    for name in names:
        for key, entries in read_yaml(name).items():
            joined.setdefault(key, []).extend(entries)
    return joined


def read_kinds(name: str) -> list[Kind]:
    """The kinds of subjects in a file of this folder."""
    return [
        Kind(
            name,
            (str(entry["pronouns"][0]), str(entry["pronouns"][1])),
            tuple(map(str, entry["subjects"])),
            tuple(
                Relation(
                    relation,
                    tuple(texts["statements"]),
                    tuple(texts["questions"]),
                    tuple(map(str, texts["answers"])),
                )
                for relation, texts in entry["relations"].items()
            ),
        )
        for name, entry in read_yaml(name)["kinds"].items()
    ]
