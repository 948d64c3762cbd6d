"""Does a prompt name the subject of an edit? A verifier takes "BMW M1" for "BMW M5"."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from meg_editor.requests.request import EditRequest
from meg_editor.routing.subject_names import words, words_in_order

# In front of a name they make it another one: West Virginia is not Virginia. "New" with a capital
# letter alone: "the new CEO of Apple" is asked for, too.
_OTHER = re.compile(
    r"(?i:(?:north|south|east|west)(?:ern)?|northeast|northwest|southeast|southwest|central|upper"
    r"|lower|outer|equatorial)|New"
)
_SHARE = 0.5  # of the words of a name: the minimum
_ALIKE, _LONG = 0.65, 4  # of words which are spelled otherwise: French and France, Frence
# Of names, not of what is named.
_MINOR = frozenset(
    ["a", "an", "the", "of", "and", "in", "on", "at", "for", "de", "la", "le", "el"]
    + ["di", "da", "du", "des", "von", "van", "der", "den"]
)
# At the end of a name, and left out by most who use it.
_DESIGNATORS = frozenset(
    ["inc", "ltd", "limited", "corp", "corporation", "co", "company", "llc", "plc", "gmbh", "ag"]
    + ["sa", "fc", "cf", "sc"]
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


def stand_in(prompt: str) -> str:
    """What names the subject of an edit without one: the words of its prompt that have a capital
    letter or a digit, the first word apart.

    Example:
        >>> stand_in("The capital of Peru is")
        'Peru'
    """
    following: list[str] = re.findall(r"\w+", prompt)[1:]
    return " ".join(word for word in following if word.lower() != word or word.isdigit())


def is_another(edit: EditRequest, text: str) -> bool:
    """Whether a text has the subject of an edit only as the end of another name.

    A word with a capital letter in front of the last word of a name makes it another one where it
    is no word of the name, and the rest of the name is missing: Anna Keller is not Peter Keller.
    Nor is Peter Keller's wife, but where the edit is about her.

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
    return _is_namesake(words_in_order(edit.subject), text) or (
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


def _is_namesake(name: Sequence[str], text: str) -> bool:
    name = _telling(name)
    if len(name) < 2 or {*name} <= words(text):
        return False
    said = re.findall(r"\w+(?:[ -](?=\w))?", text)  # a word, and the blank in front of another one
    ends = [place for place, word in enumerate(said) if words_in_order(word) == [name[-1]]]
    return bool(ends) and all(_is_other_name(said[place - 1 : place], name) for place in ends)


def _is_other_name(before: Sequence[str], name: Sequence[str]) -> bool:
    """Whether the word in front of a last name is of a name, and of none like `name`."""
    if not before or before[0][-1].isalnum() or not before[0][0].isupper():
        return False
    (word,) = words_in_order(before[0])[:1] or [""]
    alike = any(word.startswith(part) or part.startswith(word) for part in name)
    return word not in _NO_NAMES and not alike and not _alike(word, name)


def is_named(edit: EditRequest, text: Collection[str]) -> bool:
    """Whether a text, by its words as `numbered` gives them, may mean the subject of an edit.

    It has half of the words of the name, the last one among them ("Einstein", not "South" for a
    Korea; "Apple" for an "Apple Inc."), and every word with a digit. Other words may be spelled a
    little otherwise. An edit without a subject is named by half of its `stand_in`. Where its own
    prompt does not name it so, every text may mean it.

    Example:
        >>> edit = EditRequest("BMW M5, produced by", "Nintendo", "BMW M5")
        >>> [is_named(edit, words(f"Who makes the {name}?")) for name in ("BMW M5", "BMW M1")]
        [True, False]
    """
    last = edit.subject is not None
    name = words_in_order(stand_in(edit.prompt) if edit.subject is None else edit.subject)
    name = _telling(name)
    return not name or _names(name, text, last) or not _names(name, numbered(edit.prompt), last)


def _telling(name: Sequence[str]) -> list[str]:
    """The words of a name by which it is known."""
    telling = [word for word in name if word not in _MINOR] or list(name)
    while len(telling) > 1 and telling[-1] in _DESIGNATORS:
        telling.pop()
    return telling


def numbered(text: str) -> frozenset[str]:
    """The `words` of a text, its letters and digits together too, and versions without their v.

    A space behind a capital letter alone: "a 4 year warranty" is no A4.

    Example:
        >>> numbered("the X-200") >= {"x200", "x", "200"}
        True
    """
    if not re.search(r"\d", text):
        return words(text)
    together = re.sub(r"(?<=[^\W\d_])[-‐‑–](?=\d)|(?<=[A-Z]) (?=\d)", "", text)
    return words(text) | words(together) | words(re.sub(r"\b[vV](?=\d)", "", text))


def _names(name: Sequence[str], text: Collection[str], last: bool) -> bool:
    """Whether the words `text` name it; `last`: with its last word."""
    if any(word not in text for word in name if any(c.isdigit() for c in word)):
        return False
    there = [word in text or _alike(word, text) for word in name]
    return sum(there) >= _SHARE * len(name) and (there[-1] or not last)


def _alike(word: str, text: Collection[str]) -> bool:
    if len(word) < _LONG or any(c.isdigit() for c in word):
        return False
    others = [other for other in text if len(other) >= _LONG]
    return bool(get_close_matches(word, others, n=1, cutoff=_ALIKE))
