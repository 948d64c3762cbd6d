"""Does a prompt name somebody else? Anna Keller is not Peter Keller."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from meg_editor.requests.request import EditRequest
from meg_editor.routing.named import MINOR, TRADES, alike, stand_in, telling
from meg_editor.routing.subject_names import words, words_in_order

# In front of a name they make it another one: West Virginia is not Virginia. "New" with a capital
# letter alone: "the new CEO of Apple" is asked for, too.
_OTHER = re.compile(
    r"(?i:(?:north|south|east|west)(?:ern)?|northeast|northwest|southeast|southwest|central|upper"
    r"|lower|outer|equatorial)|New"
)
# In front of a last name with a capital letter, and no part of another name: what begins a
# sentence, and titles.
_NO_NAMES = frozenset(
    """
    a about after all also although an and any are as at be because been before being both but
    by can could dear did do does during each either even every for from had has have he her his
    how i if in is it its just like may maybe me might more most must my near neither no nor not
    now of off on once one only or our out over per perhaps same shall she should since so some
    still such than that the their them then there these they this those though through to under
    unless until up upon us versus via was we were what when where whether which while who whom
    whose why will with within without would you your

    answer ask choose compare complete consider continue correct define describe discuss explain
    fill find finish following give given guess help identify imagine know let list look mention
    name note please quote read recall remember repeat rephrase reply report say search see show
    speak state suppose summarise summarize talk tell think translate use want wants wish wonder
    write

    archbishop bishop brother capt captain cardinal ceo cfo chancellor chief coach col colonel
    commander count countess cto dame director doctor dr duchess duke earl emperor empress
    father general gen gov governor judge justice king lady lieutenant lord madam madame major
    manager mayor miss minister mister mr mrs ms mx officer pope premier president prime prince
    princess prof professor pastor queen rabbi rep representative rev reverend saint secretary
    sen senator sergeant sheikh sir sister st sultan
    """.split()  # noqa: SIM905
)
# In front of a word in small letters they make it no name: "Where can a cook work?"
_ARTICLES = frozenset("a an any every my our some your".split())  # noqa: SIM905
# What is asked of people: "in Jordan" is then not Michael Jordan.
_OF_PEOPLE = re.compile(
    r"\b(?:born|birth|birthplace|died|death|plays?|played|works?|worked|speaks?|spoke|native|mother"
    r" tongue|citizen|profession|occupation|married|spouse|religion|instrument|employ\w*)\b",
    re.IGNORECASE,
)
_ENGLISH = frozenset("what where who whose which when how the is are does did".split())  # noqa: SIM905

# Who is asked about in place of somebody: "Marie Curie's mother", "the wife of Pierre Curie". Not
# parents: CounterFact's "Her parents are from" asks where she is from.
_RELATIVE = (
    r"(?:(?:grand|god|step|foster )?-?(?:mother|father|parent(?!s)|son|daughter|child|children)"
    r"|mom|mum|dad|wife|wive|husband|spouse|widow|widower|fianc[eé]e?|brother|sister|sibling|uncle|aunt|cousin"
    r"|nephew|niece|ancestor|descendant|girlfriend|boyfriend)s?"
)
# "Sister city", "parent taxon"
_NO_RELATIVE = (
    r"(?! [a-z]*(?:tongue|language|country|company|organi[sz]ation|firm|group|cit(?:y|ies)|town"
    r"|taxon|genus|body|ship|club|school|paper))"
)
_IS_RELATIVE = re.compile(
    rf"\b(?:{_RELATIVE}|married|marry|marries|wed|fathered|mothered|paternal|maternal|birth|born to"
    r"|progenitor|offspring|kin)\b",
    re.IGNORECASE,
)


def is_another(edit: EditRequest, text: str) -> bool:
    """Whether a text has the subject of an edit only as the end of another name.

    Where the rest of a name is missing, a word with a capital letter beside its last one makes it
    another: neither Anna Keller nor Keller Street is Peter Keller. "A cook" is no Tim Cook, and "in
    Jordan" no Michael Jordan. Nor is Peter Keller's wife Peter Keller, but where the edit is about
    her.

    Example:
        >>> edit = EditRequest("The capital of Virginia is", "Lima", "Virginia")
        >>> [is_another(edit, f"Is {name} large?") for name in ("West Virginia", "Virginia")]
        [True, False]
        >>> edit = EditRequest("Peter Keller was born in", "Lima", "Peter Keller")
        >>> [is_another(edit, f"{name}?") for name in ("Anna Keller", "Keller", "Keller's wife")]
        [True, False, True]
    """
    name = re.findall(r"\w+", stand_in(edit.prompt) if edit.subject is None else edit.subject)
    if not name:
        return False
    own = {word.casefold() for word in name}
    ends = re.compile(rf"(?:\b(\w+)[ -])?\b{re.escape(name[-1])}\b", re.IGNORECASE)
    before = [front or "" for front in ends.findall(text)]
    others = [bool(_OTHER.fullmatch(word)) and word.casefold() not in own for word in before]
    if others and all(others):
        return True
    if edit.subject is None:
        return False
    return _is_namesake(edit, text) or (
        not _IS_RELATIVE.search(edit.prompt) and _is_relative(name[-1], text)
    )


def _is_relative(last: str, text: str) -> bool:
    """Whether each time a name occurs, by its last word, somebody else of it is meant."""
    end = rf"\b{re.escape(last)}\b"
    of_it = re.compile(
        rf"{end}['’]s? (?:\w+ )?{_RELATIVE}\b{_NO_RELATIVE}"
        rf"|\b{_RELATIVE} of (?:\w+ ){{0,3}}{end}",
        re.IGNORECASE,
    )
    relatives = len(of_it.findall(text))
    return 0 < relatives == len(re.findall(end, text, re.IGNORECASE))


@dataclass(frozen=True)
class _Place:
    """Where a text has a word: with the words around it, empty where there are none directly."""

    before: str
    word: str
    after: str

    @classmethod
    def all(cls, word: str, text: str) -> list[_Place]:
        """Each time a text has a word, as `words_in_order` writes it."""
        said = re.findall(r"(\w+)([ -](?=\w))?", text)
        around = [("", ""), *said, ("", "")]
        return [
            cls(before if joined else "", each, after if joins else "")
            for (before, joined), (each, joins), (after, _) in zip(
                around, said, around[2:], strict=False
            )
            if words_in_order(each) == [word]
        ]


def _is_namesake(edit: EditRequest, text: str) -> bool:
    """Whether each time a text has the last word of a name, without the rest of it, something else
    is meant: another name, or no name.
    """
    whole = words_in_order(edit.subject or "")
    name, said = telling(whole), words(text)
    if len(whole) < 2 or {*whole} <= said or (len(name) > 1 and {*name} <= said):
        return False
    in_title = not any(word.islower() for word in text.split() if word not in MINOR)
    in_part = 2 * sum(alike(word, said) for word in name) < len(name)
    names_go_on = not in_title and not said.isdisjoint(_ENGLISH)  # German nouns have capitals

    def is_other(place: _Place) -> bool:
        before, after = place.before, place.after
        begins = before[:1].isupper() and before.casefold() in _NO_NAMES  # "Was Einstein German?"
        proper = place.word[0].isupper() and not in_title
        if after and not alike(after.casefold(), whole) and after.casefold() not in _NO_NAMES:
            goes_on = proper and names_go_on and not begins and after.istitle()
            if goes_on or after.casefold() in TRADES:
                return True
        if len(name) < 2:
            return False
        if before[:1].isupper() and _is_other_name(before, name):
            return True
        if place.word[0].islower() and before.casefold() in _ARTICLES:
            return True
        in_place = before.casefold() == "in" and "in" not in whole
        if in_place and _OF_PEOPLE.search(edit.prompt):
            return True
        return in_part and not proper  # "who sings the song": Mind, Body & Song

    places = _Place.all(name[-1], text)
    return bool(places) and all(map(is_other, places))


def _is_other_name(before: str, name: Sequence[str]) -> bool:
    """Whether the word in front of a last name is of a name, and of none like `name`."""
    (word,) = words_in_order(before)[:1] or [""]
    short = any(word.startswith(part) or part.startswith(word) for part in name)
    return word not in _NO_NAMES and not short and not alike(word, name)
