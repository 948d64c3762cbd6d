"""Sentences of a text being written: where one ends, and which of them a verifier reads."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from meg_editor.model.decoding.subjects import last_word

SENTENCE_END = re.compile(r"[.!?](?=[\s\"'”’)\]]|$)|[。！？؟।]|\n")
_READ = 4000  # characters at the end of a text in which subjects are looked for
_LONGEST = 200  # characters of a sentence for the verifier
_SLOT = 8  # characters behind a subject by which its place is known again
_OTHER_NAME = (
    r"(?:The )?(?!(?:The|This|That|These|Those|There|Here|It|Its|He|His|She|Her|They|Their)\b)"
    r"[^\W\d_a-z]\w[^\n.!?]{0,40}?"
)


def about(text: str, subject: str) -> str | None:
    """What a verifier reads: the sentence that names the subject, and the one being written.

    None where no sentence has begun, where the subject is not named, and where the text has left
    it: the words around the subject have come again around another name, as in notes on several.

    Example:
        >>> about("Tell me about France. It is big. Its capital is", "France")
        'Tell me about France.\\nIts capital is'
        >>> about("On Peru: It is big.\\nOn France: It is big. Its capital is", "Peru") is None
        True
    """
    text = _bare(text[-_READ:])
    starts = [0, *(end.end() for end in SENTENCE_END.finditer(text))]
    last = text[starts[-1] :].strip()
    mentions = _mentions(text, _bare(subject))
    if not last or not mentions or _left(text, starts, mentions):
        return None
    place = mentions[-1].start()
    start = max(start for start in starts if start <= place)
    if start == starts[-1]:
        return last[-2 * _LONGEST :]
    end = min(s for s in starts if s > place)
    name = text[max(start, place - _LONGEST // 2) : min(end, place + _LONGEST // 2)].strip()
    return f"{name}\n{last[-_LONGEST:]}"


def joined(question: str, text: str) -> str:
    """A question and the text that answers it, with a blank between where neither has one.

    Example:
        >>> joined("Tell me about France.", "It is big."), joined("France is", " big.")
        ('Tell me about France. It is big.', 'France is big.')
    """
    return question + (text if question[-1:].isspace() or text[:1].isspace() else f" {text}")


def to_last_word(text: str) -> str:
    """`text` without the word it ends with, which may go on.

    Example:
        >>> to_last_word("Its capit")
        'Its '
    """
    return re.sub(r"\w+$", "", text)


def _mentions(text: str, subject: str) -> list[re.Match[str]]:
    """Where the subject is named in full, or else by its last word."""
    for name in (subject, last_word(subject)):
        found = list(re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))
        if found:
            return found
    return []


def _left(text: str, starts: Sequence[int], mentions: Sequence[re.Match[str]]) -> bool:
    """Whether the words around a mention come again, after the last one, around another name."""
    rest, subject = text[mentions[-1].end() :], mentions[-1].group()
    for mention in mentions:
        start = max(start for start in starts if start <= mention.start())
        before = text[start : mention.start()].lstrip()
        slot = rf"(?:\n|[.!?]\s)\s*{re.escape(before)}"
        if len(before.split()) < 2 and not re.search(r"\w\W*[:#*>-]", before):
            # "On", "##" or nothing is not telling enough: with what follows it is.
            behind = text[mention.end() :]
            if len(behind[:_SLOT].strip()) < 2:
                continue
            slot += rf"(?P<other>{_OTHER_NAME}){_behind(behind, subject)}"
        if re.search(slot, rest):
            return True
    return False


def _behind(text: str, subject: str) -> str:
    """Pattern of what follows a name; where that is the name again, it is the other one again."""
    blank = len(text) - len(text.lstrip())
    if text.startswith(subject, blank):
        return rf"{re.escape(text[:blank])}(?P=other)"
    return re.escape(text[:_SLOT])


def _bare(text: str) -> str:
    """`text` without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
