"""Candidate question spans of a text: where in it may the question stand?"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

# "A:", "Answer:", "Output:" on a line of its own, or before a question ("Q: ..."); lists, headings.
_CUE = re.compile(r"^\s*(?:[A-Z][a-z]{0,11}\s*[:>]|[-*>#]+|\d{1,2}[.)])\s*")
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'”’»)\]]*\s+(?=[^\W_a-z]|[\"'“‘«(¿¡])|(?<=[。！？؟।])[\"'”’」』）]*\s*"
)
_QUOTED = re.compile(
    r"\"([^\"\n]{8,})\"|“([^”\n]{8,})”|«([^»\n]{8,})»|「([^」\n]{4,})」|„([^“”\n]{8,})[“”]"
)
_ASIDE = re.compile(r"\s*[(\[][^()\[\]]{1,60}[)\]]\s*$")
_MARKUP = "#*"  # closes only what it has opened: "C#" is a name
_ENDS = " \t\"'“”‘’«»„「」()[]_`~-–—<>" + _MARKUP
_MARKS = "*_~`\"'"
_BRACKETS = {"(": ")", "[": "]", "“": "”", "‘": "’", "«": "»", "„": "“”", "「": "」"}
_WIDE = ("<wide>", "<narrow>", "<font>")  # the same letter, drawn otherwise
_JOINERS = "\u200c\u200d"  # unseen characters which change a word: of Persian, of emoji
_REPEATED = re.compile(r"([?!？！])[?!？！]+")
_FIRST, _LAST = 3, 6  # sentences of a long text which may be the question: of its begin and end
_LONGEST = 4000  # characters at either end of a text which are looked at


def canonical(text: str, form: Literal["NFC", "NFKC"] = "NFKC") -> str:
    """`text` without what does not decide: width, quotes around it, blanks, doubled marks.

    Args:
        form: NFC keeps width, and with it what is small or raised: 10⁵ is not 105.

    Example:
        >>> canonical('  "Who  wrote Emma??" ')
        'Who wrote Emma?'
    """
    text = unicodedata.normalize(form, text)
    text = " ".join(text.split())
    inner = text.lstrip(_ENDS)
    opened = text[: len(text) - len(inner)]
    text = inner.rstrip(_ENDS if set(opened) & set(_MARKUP) else _ENDS.strip(_MARKUP))
    bare = text.rstrip("?!. ")
    return bare + text[len(bare) :].strip()[:1]


def surface(text: str) -> str:
    """`text` as it would be typed plainly: what is wide, unseen, doubled or put around it is gone.

    Letters of another width or font, unseen characters, repeated blanks and marks, and quotes and
    markup around the whole. Lines stay lines, and what is raised stays raised: 10⁵ is not 105.

    Example:
        >>> surface("**Ｗｈｏ  wrote\\tEmma???**")
        'Who wrote Emma?'
    """
    seen = "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c).startswith(_WIDE) else c
        for c in text
        if c in _JOINERS or unicodedata.category(c) != "Cf"
    )
    lines = "\n".join(" ".join(line.split()) for line in seen.splitlines()).strip()
    plain = _REPEATED.sub(r"\1", lines)
    return _unmarked(plain).lstrip("¿¡") or text


def _unmarked(text: str) -> str:
    """`text` without marks and brackets around all of it, if none like them is inside."""
    while len(text) > 2:
        first = text[0]
        if first in _MARKS:
            inner = text.strip(first)
            closed = len(text) - len(text.rstrip(first))
            around = text.startswith(first * closed + inner[:1]) and bool(inner and closed)
            inside = first
        else:
            inner, inside = text[1:-1], first + _BRACKETS.get(first, "")
            around = text[-1] in _BRACKETS.get(first, "")
        if not around or any(mark in inner for mark in inside):
            break
        text = inner.strip()
    return text


def closing_spans(text: str) -> list[str]:
    """The text, its last line and that line's last sentence: where a question stands alone.

    Example:
        >>> closing_spans("Q: Who sang Hello?\\nA: Adele\\nQ: Who wrote Emma?\\nA:")[1:]
        ['Who wrote Emma?']
    """
    lines = _lines(text)
    last = lines[-1] if lines else text
    sentence = _SENTENCE_END.split(last)[-1].strip()
    return list(dict.fromkeys(part for part in (text.strip(), last, sentence) if part))


def spans_of(text: str) -> list[str]:
    """Every part of a text that may be its question, the closing ones first, without duplicates.

    Sentences in any script, lines without their labels, quoted parts, and what stands behind a
    colon or in front of an aside. Of a long text those at its begin and its end.

    Example:
        >>> spans_of("Please answer: who wrote Emma? Be brief.")[1:]
        ['Be brief.', 'Please answer: who wrote Emma?', 'who wrote Emma?']
    """
    if len(text) > 2 * _LONGEST:
        text = f"{text[:_LONGEST]}\n{text[-_LONGEST:]}"
    sentences = [
        sentence.strip()
        for line in _lines(text)
        for sentence in _SENTENCE_END.split(line)
        if sentence and sentence.strip(_ENDS + ".?!")
    ]
    if len(sentences) > _FIRST + _LAST:
        sentences = sentences[:_FIRST] + sentences[-_LAST:]
    parts = [*closing_spans(text), *reversed(sentences)]
    for sentence in sentences:
        parts += [behind for behind in (_behind(sentence), _ASIDE.sub("", sentence)) if behind]
    parts += [next(filter(None, match.groups())) for match in _QUOTED.finditer(text)]
    return list(dict.fromkeys(part for part in map(str.strip, parts) if part))


def excerpt(text: str, span: str, limit: int = 480) -> str:
    """`text`; a long one shortened to its begin, what is around `span`, and its end.

    Args:
        limit: characters above which it is shortened.

    Example:
        >>> excerpt("Read this. " + "x" * 900 + " Who wrote Emma?", "Who wrote Emma?", 60)
        'Read this. xxxx … xxxxxxxxxxxxxx Who wrote Emma?'
    """
    if len(text) <= limit:
        return text
    quarter = limit // 4
    start = max(text.rfind(span), 0)
    around = (start - quarter, min(start + len(span), start + limit) + quarter)
    ranges = [(0, quarter), around, (len(text) - quarter, len(text))]
    merged: list[tuple[int, int]] = []
    for begin, end in sorted((max(a, 0), min(b, len(text))) for a, b in ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return " … ".join(text[begin:end].strip() for begin, end in merged)


def _lines(text: str) -> list[str]:
    """Lines with something in them, without labels; those with a label alone close a frame."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    while len(lines) > 1 and not _CUE.sub("", lines[-1]).strip(_ENDS):
        lines.pop()
    return [_CUE.sub("", line).strip() or line for line in lines]


def _behind(sentence: str) -> str:
    """What follows the last colon, or a short clause in front of the first comma."""
    head, colon, tail = sentence.rpartition(": ")
    if colon and len(tail) >= 8:
        return tail
    head, comma, tail = sentence.partition(", ")
    return tail if comma and len(head) <= 30 and len(tail) >= 8 else ""
