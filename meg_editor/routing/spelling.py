"""Subjects as people spell them: a verifier takes "Austrlia" for another country."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from meg_editor.config.unicode_text import UNSPACED
from meg_editor.requests.request import EditRequest
from meg_editor.routing.named import telling
from meg_editor.routing.subject_names import words, words_in_order

_LONG = 5  # letters: many shorter names differ in one
_REPLACED = 8  # letters where one is another: Zentrix and Zentrax are two names
_ALIKE = 0.8  # of a misspelt word and the right one
_WORD = re.compile(rf"[^\W\d_{UNSPACED}]{{{_LONG},}}")
_PARTS = re.compile(r"\d+|[^\W\d_]+")
# Between letters and their digits; a space behind a capital letter alone: "a 4 year warranty".
_BETWEEN = r"(?:[-‐‑–]?|(?<=[A-Z]) )"


def spelled(edit: EditRequest, text: str, is_word: Callable[[str], bool]) -> str:
    """`text` with the words of the subject of an edit as that spells them.

    A misspelt word has the first letter of the right one, is much like it, and is no word itself:
    Austria is no misspelt Australia. Letters and digits may stand apart, as in "X-200".

    Args:
        is_word: whether a word, in lower case and without accents, is known as it is.

    Example:
        >>> edit = EditRequest("The capital of Australia is", "Lima", "Australia")
        >>> spelled(edit, "capital of Austrlia? Austria?", {"austria", "capital"}.__contains__)
        'capital of Australia? Austria?'
    """
    there = words(text)
    name = re.findall(r"\w+", edit.subject or "")
    missing = {_plain(word): word for word in name if not words(word) <= there}
    for word in missing.values():
        if re.search(r"\d", word) and not word.isdigit():
            parts = (f"(?i:{re.escape(part)})" for part in _PARTS.findall(word))
            text = re.sub(rf"\b{_BETWEEN.join(parts)}\b", word, text)
    long = [word for word in missing if len(word) >= _LONG and word.isalpha()]

    def right(match: re.Match[str]) -> str:
        word = _plain(match[0])
        if not word or is_word(word):
            return match[0]
        meant = [name for name in long if name[0] == word[0] and _misspells(word, name)]
        return missing[meant[0]] if meant else match[0]

    return _WORD.sub(right, text) if long else text


def corrected(
    text: str, near: Callable[[str], Sequence[str]], is_word: Callable[[str], bool]
) -> str:
    """`text` with its misspelt words as the names that they are near to have them.

    So that the edit is found at all which `spelled` reads the text with.

    Args:
        near: the words of names that differ from a word in one letter.

    Example:
        >>> corrected("capital of Austrlia?", lambda word: ["australia"], {"capital"}.__contains__)
        'capital of australia?'
    """

    def right(match: re.Match[str]) -> str:
        word = _plain(match[0])
        if not word or is_word(word):
            return match[0]
        meant = [name for name in near(word) if len(name) >= _LONG and _misspells(word, name)]
        return max(meant, key=lambda name: _ratio(word, name), default=match[0])

    return _WORD.sub(right, text)


def in_full(edit: EditRequest, text: str) -> str:
    """`text` with the whole name of the subject of an edit where it leaves the generic end out.

    Example:
        >>> edit = EditRequest("The CEO of Volvo Group is", "Ada", "Volvo Group")
        >>> in_full(edit, "Who runs Volvo?")
        'Who runs Volvo Group?'
    """
    subject = edit.subject or ""
    whole = words_in_order(subject)
    short = telling(whole)
    if short[-1:] == whole[-1:] or {*whole} <= words(text):
        return text
    ends = [m.end() for m in re.finditer(r"\w+", subject) if words_in_order(m[0]) == short[-1:]]
    if not ends:  # of a script without spaces
        return text
    following = re.findall(r"\w+", subject[ends[-1] :])
    rest = "".join(rf"(?:[ -]{re.escape(word)})?" for word in following)
    name = rf"\b{re.escape(subject[: ends[-1]])}\b{rest}"
    return re.sub(name, lambda _: subject, text, flags=re.IGNORECASE)


def _plain(word: str) -> str:
    return "".join(words_in_order(word))


def _ratio(word: str, name: str) -> float:
    return SequenceMatcher(None, word, name, autojunk=False).ratio()


def _misspells(word: str, name: str) -> bool:
    matcher = SequenceMatcher(None, word, name, autojunk=False)
    replaced = any(kind == "replace" for kind, *_ in matcher.get_opcodes())
    return matcher.ratio() >= _ALIKE and (len(name) >= _REPLACED or not replaced)
