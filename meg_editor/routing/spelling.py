"""Subjects as people spell them: a verifier takes "Austrlia" for another country."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches

from meg_editor.requests.request import EditRequest
from meg_editor.routing.subject_names import words

_LONG = 5  # letters: many shorter names differ in one
_ALIKE = 0.8  # of a misspelt word and the right one
_WORD = re.compile(r"[^\W\d_]+")
_PARTS = re.compile(r"\d+|[^\W\d_]+")


def spelled(edit: EditRequest, text: str, is_word: Callable[[str], bool]) -> str:
    """`text` with the words of the subject of an edit as that spells them.

    A misspelt word has the first letter of the right one, is much like it, and is no word itself:
    Austria is no misspelt Australia. Letters and digits may stand apart, as in "X-200".

    Args:
        is_word: whether a word in lower case is known as it is.

    Example:
        >>> edit = EditRequest("The capital of Australia is", "Lima", "Australia")
        >>> spelled(edit, "capital of Austrlia? Austria?", {"austria", "capital"}.__contains__)
        'capital of Australia? Austria?'
    """
    name = re.findall(r"\w+", edit.subject or "")
    there = words(text)
    missing = {word.casefold(): word for word in name if not words(word) <= there}
    for word in missing.values():
        if any(map(str.isdigit, word)) and not word.isdigit():
            apart = r"[ -]?".join(map(re.escape, _PARTS.findall(word)))
            text = re.sub(rf"\b{apart}\b", word, text, flags=re.IGNORECASE)
    long = [word for word in missing if len(word) >= _LONG and word.isalpha()]
    if not long:
        return text

    def right(match: re.Match[str]) -> str:
        word = match[0].casefold()
        alike = [other for other in long if other[0] == word[0]] if len(word) >= _LONG else []
        found = get_close_matches(word, alike, n=1, cutoff=_ALIKE)
        return missing[found[0]] if found and not is_word(word) else match[0]

    return _WORD.sub(right, text)


def numbered(text: str) -> frozenset[str]:
    """The `words` of a text, its letters and digits together and apart: "X-200", "X200".

    Example:
        >>> numbered("the X-200") >= {"x200", "x", "200"}
        True
    """
    if not re.search(r"\d", text):
        return words(text)
    together = re.sub(r"(?<=[^\W_])[ -](?=\d)", "", text)
    apart = re.sub(r"(?<=[^\W\d_])(?=\d)", " ", text)
    return words(text) | words(together) | words(apart)
