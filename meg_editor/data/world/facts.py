"""The reference world: facts a small language model can truly know, and be edited in.

Real facts (capitals, elements, books, ...) come from the tables in `world/`; people, companies and
towns are made up from syllables. Everything follows from the tables and one constant seed, so the
shipped model and a freshly built world always agree.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any, Literal

import yaml

Group = Literal["edit", "pseudo", "test"]
FactSplit = Literal["edit", "pseudo", "calibration", "common"]
GROUPS: tuple[Group, ...] = ("edit", "pseudo", "test")

_SEED = 2512_14395
# relation -> (table, subject column, answer column)
_TABLES = {
    "capital": ("countries", "country", "capital"),
    "language": ("countries", "country", "language"),
    "currency": ("countries", "country", "currency"),
    "continent": ("countries", "country", "continent"),
    "symbol": ("elements", "element", "symbol"),
    "atomic_number": ("elements", "element", "number"),
    "author": ("books", "book", "author"),
    "inventor": ("inventions", "thing", "person"),
    "landmark_city": ("landmarks", "landmark", "city"),
    "creator": ("compositions", "work", "creator"),
    "opposite": ("opposites", "word", "opposite"),
}
# Of the PSEUDO phrasings the first tune encoders, the others calibrate thresholds.
_TUNING = 3
_UNEDITED = ("opposite", "sum", "birth_country")


@dataclass(frozen=True)
class Fact:
    """A fact of the reference model: (subject, relation) -> answer."""

    subject: str
    relation: str
    answer: str
    split: FactSplit
    made_up: bool


@dataclass(frozen=True)
class World:
    """All facts, and how each relation is put into words.

    `phrasings[relation][group]` is a list of templates with one `{}` for the subject. The groups
    are disjoint: "edit" phrasings are edited, "pseudo" ones tune encoders, "test" ones measure
    Generality and nothing else.

    Example:
        >>> world = load_world()
        >>> fact = next(fact for fact in world.by_subject["France"] if fact.relation == "capital")
        >>> fact.answer, world.prompts(fact, "edit")[0]
        ('Paris', 'The capital of France is')
    """

    facts: tuple[Fact, ...]
    phrasings: dict[str, dict[Group, list[str]]] = field(repr=False)

    def prompts(self, fact: Fact, group: Group) -> list[str]:
        """Every phrasing of `fact` in `group`, the subject filled in, without the answer."""
        return [template.format(fact.subject) for template in self.phrasings[fact.relation][group]]

    def tuning_phrasings(self, relation: str) -> list[str]:
        """Templates which encoders may be tuned on: EDIT and the first PSEUDO ones."""
        groups = self.phrasings[relation]
        return groups["edit"] + groups["pseudo"][:_TUNING]

    def calibration_prompts(self, fact: Fact) -> list[str]:
        """`fact` in the other PSEUDO phrasings: new to the encoder, as a user's words will be."""
        return self.prompts(fact, "pseudo")[_TUNING:]

    def in_split(self, *splits: FactSplit) -> list[Fact]:
        """The facts of the named splits, in the world's order."""
        return [fact for fact in self.facts if fact.split in splits]

    @cached_property
    def by_subject(self) -> dict[str, list[Fact]]:
        """Subject -> its facts."""
        table: dict[str, list[Fact]] = {}
        for fact in self.facts:
            table.setdefault(fact.subject, []).append(fact)
        return table

    @cached_property
    def by_relation(self) -> dict[str, list[Fact]]:
        """Relation -> its facts."""
        table: dict[str, list[Fact]] = {}
        for fact in self.facts:
            table.setdefault(fact.relation, []).append(fact)
        return table

    @cached_property
    def answers(self) -> dict[str, list[str]]:
        """Relation -> its distinct answers, from which counterfactual targets are drawn."""
        return {
            relation: sorted({fact.answer for fact in facts})
            for relation, facts in self.by_relation.items()
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all facts and phrasings: which world a model was trained on."""
        digest = hashlib.sha256(repr(self.phrasings).encode())
        for fact in self.facts:
            digest.update(repr(fact).encode())
        return digest.hexdigest()


def load_world() -> World:
    """Build the reference world (about 15,000 facts, a tenth of a second)."""
    phrasings = _read_yaml("phrasings")
    triples = [*_real_triples(), *_made_up_triples(_read_yaml("made_up"), random.Random(_SEED))]
    real = len(list(_real_triples()))
    facts = [
        Fact(subject, relation, answer, _split_of(subject, relation), made_up=index >= real)
        for index, (subject, relation, answer) in enumerate(triples)
    ]
    facts += [
        Fact(f"{a} plus {b}", "sum", str(a + b), "common", made_up=False)
        for a in range(1, 16)
        for b in range(1, 16)
    ]
    return World(tuple(facts), phrasings)


def _split_of(subject: str, relation: str) -> FactSplit:
    """Split by subject, so that no name crosses from tuning into editing."""
    if relation in _UNEDITED:
        return "common"
    bucket = hashlib.sha256(subject.encode()).digest()[0]
    return "pseudo" if bucket < 26 else "calibration" if bucket < 52 else "edit"


def _real_triples() -> Iterator[tuple[str, str, str]]:
    for relation, (table, subject, answer) in _TABLES.items():
        for row in _read_table(table):
            if row[subject] and row[answer]:
                yield row[subject], relation, row[answer]


def _made_up_triples(parts: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, str, str]]:
    countries = {row["capital"]: row["country"] for row in _read_table("countries")}
    countries.pop("", None)
    cities = list(countries)
    counts = parts["counts"]
    first_names = _names(parts["name_syllables"], 120, rng)
    surnames = _names(parts["surname_syllables"], 300, rng)
    people = _pairs(first_names, surnames, counts["person"], rng)
    stems = _names(parts["company_syllables"], 250, rng)
    companies = _pairs(stems, parts["company_kinds"], counts["company"], rng)
    towns = _names(parts["town_syllables"], counts["town"], rng)
    rivers = _names(parts["river_syllables"], parts["rivers"], rng)
    first_year, last_year = parts["founding_years"]
    years = [str(year) for year in range(first_year, last_year + 1)]
    for person in people:
        birthplace = _pick(cities, rng)
        yield person, "birthplace", birthplace
        yield person, "birth_country", countries[birthplace]
        yield person, "profession", _pick(parts["professions"], rng)
        yield person, "employer", _pick(companies, rng)
        yield person, "instrument", _pick(parts["instruments"], rng)
        yield person, "hobby", _pick(parts["hobbies"], rng)
    for company in companies:
        yield company, "headquarters", _pick(cities, rng)
        yield company, "product", _pick(parts["products"], rng)
        yield company, "founder", _pick(people, rng)
        yield company, "founding_year", _pick(years, rng)
    for town in towns:
        yield town, "town_country", _pick(list(countries.values()), rng)
        yield town, "river", _pick(rivers, rng)
        yield town, "speciality", _pick(parts["specialities"], rng)


def _pick(items: Sequence[str], rng: random.Random) -> str:
    # Only random() is promised to give the same numbers in every Python version.
    return items[int(rng.random() * len(items))]


def _names(syllables: dict[str, list[str]], count: int, rng: random.Random) -> list[str]:
    """`count` different names, start + middle + end."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(_pick(syllables[part], rng) for part in ("start", "middle", "end"))] = None
    return list(names)


def _pairs(
    firsts: Sequence[str], seconds: Sequence[str], count: int, rng: random.Random
) -> list[str]:
    pairs: dict[str, None] = {}
    while len(pairs) < count:
        pairs[f"{_pick(firsts, rng)} {_pick(seconds, rng)}"] = None
    return list(pairs)


def _read_yaml(name: str) -> Any:
    return yaml.safe_load((files(__package__) / f"{name}.yaml").read_text("utf-8"))


def _read_table(name: str) -> list[dict[str, str]]:
    text = (files(__package__) / f"{name}.tsv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
