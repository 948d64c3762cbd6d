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

    Example:
        >>> edit = EditRequest("The capital of Virginia is", "Lima", "Virginia")
        >>> [is_another(edit, f"Is {name} large?") for name in ("West Virginia", "Virginia")]
        [True, False]
    """
    name = re.findall(r"\w+", stand_in(edit.prompt) if edit.subject is None else edit.subject)
    if not name:
        return False
    own = {word.casefold() for word in name}
    ends = re.compile(rf"(?:\b(\w+)[ -])?\b{re.escape(name[-1])}\b", re.IGNORECASE)
    before = [front or "" for front in ends.findall(text)]
    others = [bool(_OTHER.fullmatch(word)) and word.casefold() not in own for word in before]
    return bool(others) and all(others)


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
    name = [word for word in name if word not in _MINOR] or name
    while len(name) > 1 and name[-1] in _DESIGNATORS:
        name.pop()
    return not name or _names(name, text, last) or not _names(name, numbered(edit.prompt), last)


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
