"""Does a prompt name the subject of an edit? A verifier takes "BMW M1" for "BMW M5"."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from meg_editor.requests.request import EditRequest
from meg_editor.routing.subject_names import words, words_in_order

_SHARE = 0.5  # of the words of a name that have to be there
_ALIKE, _LONG = 0.65, 4  # of words which are spelled otherwise: French and France, Frence
# Of names, not of what is named.
_MINOR = frozenset(
    ["a", "an", "the", "of", "and", "in", "on", "at", "for", "de", "la", "le", "el"]
    + ["di", "da", "du", "des", "von", "van", "der", "den"]
)


def is_named(edit: EditRequest, text: str) -> bool:
    """Whether a text may mean the subject of an edit.

    It has half of the words of the name, the last one among them ("Einstein", not "South" for a
    Korea), and every word with a digit. Other words may be spelled a little otherwise. An edit
    without a subject is named by half of the words of its prompt that have a capital letter or a
    digit, the first word apart. Where its own prompt does not name it so, every text may mean it.

    Example:
        >>> edit = EditRequest("BMW M5, produced by", "Nintendo", "BMW M5")
        >>> is_named(edit, "Who makes the BMW M5?"), is_named(edit, "Who makes the BMW M1?")
        (True, False)
    """
    if edit.subject is not None:
        name = words_in_order(edit.subject)
    else:
        capital = [w for w in re.findall(r"\w+", edit.prompt)[1:] if w.lower() != w or w.isdigit()]
        name = words_in_order(" ".join(capital))
    name = [word for word in name if word not in _MINOR] or name
    last = edit.subject is not None
    return not name or _names(name, words(text), last) or not _names(name, words(edit.prompt), last)


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
