"""Does a prompt name the subject of an edit? A verifier takes "BMW M1" for "BMW M5"."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from meg_editor.config.unicode_text import UNSPACED
from meg_editor.requests.request import EditRequest
from meg_editor.routing.subject_names import words, words_in_order

_SHARE = 0.5  # of the words of a name: the minimum
_ALIKE, _LONG = 0.65, 4  # of words which are spelled otherwise: French and France, Frence
# Of names, not of what is named.
MINOR = frozenset(
    ["a", "an", "the", "of", "and", "in", "on", "at", "for", "de", "la", "le", "el"]
    + ["di", "da", "du", "des", "von", "van", "der", "den"]
)
# At the end of a name, and left out by most who use it: the kind of company,
_LEGAL_FORMS = frozenset(
    """
    ag cf co company corp corporation fc gmbh group holding holdings inc international limited llc
    ltd plc sa sc
    """.split()  # noqa: SIM905
)
# and what it does. In front of these words may be an ordinary one: General Motors.
TRADES = frozenset(
    """
    airlines airways books communications consulting electronics energy enterprises entertainment
    foods hotels industries insurance laboratories labs lines logistics motor motors networks
    partners pharma pharmaceuticals pictures press publishing records restaurants robotics services
    shipping software solutions stores studios supermarkets systems technologies ventures

    academy college desert foundation institute museum school university
    """.split()  # noqa: SIM905
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


def is_named(edit: EditRequest, text: Collection[str]) -> bool:
    """Whether a text, by its words as `numbered` gives them, may mean the subject of an edit.

    It has the last word of the name ("Einstein", not "South" for a Korea; "Apple" for an "Apple
    Inc."), and every word with a digit. Where that word comes after an "of", and in scripts without
    spaces, it has half of the words: a Crown Princess of Norway is not Norway. Other words may be
    spelled a little otherwise. An edit without a subject is named by half of its `stand_in`. Where
    its own prompt does not name it so, every text may mean it.

    Example:
        >>> edit = EditRequest("BMW M5, produced by", "Nintendo", "BMW M5")
        >>> [is_named(edit, words(f"Who makes the {name}?")) for name in ("BMW M5", "BMW M1")]
        [True, False]
    """
    whole = words_in_order(stand_in(edit.prompt) if edit.subject is None else edit.subject)
    name = telling(whole)
    if not name:
        return True
    of = name[-1] != whole[0] and whole[whole.index(name[-1]) - 1] in MINOR
    # The last word is enough; one character of a script without spaces is not.
    alone = edit.subject is not None and not of and not re.fullmatch(f"[{UNSPACED}]", name[-1])
    ours, last = numbered(edit.prompt), edit.subject is not None
    share = 0.0 if alone else _SHARE
    return _names(name, text, share, last) or not _names(name, ours, share, last)


def telling(name: Sequence[str]) -> list[str]:
    """The words of a name by which it is known."""
    return _without_end(name, _LEGAL_FORMS | TRADES)


def without_trade(name: Sequence[str], text: Collection[str]) -> list[str]:
    """The `telling` words of a name where a text leaves out what a company does; else none."""
    known = telling(name)
    trade = [word for word in _without_end(name, _LEGAL_FORMS) if word not in known]
    return known if trade and not any(alike(word, text) for word in trade) else []


def _without_end(name: Sequence[str], ends: Collection[str]) -> list[str]:
    words_left = [word for word in name if word not in MINOR] or list(name)
    while len(words_left) > 1 and words_left[-1] in ends:
        words_left.pop()
    return words_left


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


def _names(name: Sequence[str], text: Collection[str], share: float, last: bool) -> bool:
    """Whether the words `text` name it; `last`: with its last word."""
    if any(word not in text for word in name if any(c.isdigit() for c in word)):
        return False
    there = [alike(word, text) for word in name]
    return sum(there) >= share * len(name) and (there[-1] or not last)


def alike(word: str, text: Collection[str]) -> bool:
    """Whether a word is one of a text, or spelled much like one: French and France."""
    if word in text:
        return True
    if len(word) < _LONG or any(c.isdigit() for c in word):
        return False
    others = [other for other in text if len(other) >= _LONG]
    return bool(get_close_matches(word, others, n=1, cutoff=_ALIKE))
