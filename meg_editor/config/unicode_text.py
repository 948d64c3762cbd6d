"""What a text of the user may hold, and when two texts are the same one."""

from __future__ import annotations

import re
from unicodedata import normalize

# Scripts which put no blanks between words, as ranges of a character class.
UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# Code points that leave nothing to see: Default_Ignorable_Code_Point (UAX 44) and the interlinear
# annotations. Nearly all of category Cf; its number signs of Arabic and Kaithi are visible.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
# The flags of England and Scotland are one black flag with different invisible tags.
_INVISIBLE = re.compile(f"(\U0001f3f4[\U000e0020-\U000e007f]+)|[{_IGNORABLE}]")
_VISIBLE = re.compile(rf"[^\s\x00-\x1f\x7f-\x9f\u2800{_IGNORABLE}]")
# Tab and all line breaks of Unicode are allowed; so are joiners, which Persian and Hindi need.
_BAD = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ud800-\udfff]")
_KINDS = {"\0": "NUL", "\x1b": "ESC", "\ufeff": "a byte order mark"}


def bad_character(text: str) -> str | None:
    """Description of the first character that no text may hold; None if there is none.

    These are NUL, other control characters but tab and line breaks (they change the state of a
    terminal), byte order marks, and lone surrogates, which UTF-8 cannot encode.

    Example:
        >>> bad_character("Paris\\x1b[31m")
        'U+001B (ESC) at character 6'
    """
    match = _BAD.search(text)
    if match is None:
        return None
    character = match.group()
    kind = "half of a surrogate pair" if "\ud800" <= character <= "\udfff" else "a control"
    kind = _KINDS.get(character, kind)
    return f"U+{ord(character):04X} ({kind}) at character {match.start() + 1}"


def has_visible_character(text: str) -> bool:
    """Whether `text` is more than blanks, controls and invisible characters.

    Example:
        >>> has_visible_character(" \\u200b"), has_visible_character("a")
        (False, True)
    """
    return _VISIBLE.search(text) is not None


def canonical_text(text: str) -> str:
    """`text` in NFC, without invisible characters, with one blank for any white space.

    Texts which look the same give the same canonical text. Case and compatibility characters
    (NFKC) still count.

    Example:
        >>> canonical_text(" The  capital\\u200b of Cafe\\u0301") == "The capital of Caf\\u00e9"
        True
    """
    if not text.isascii():
        text = normalize("NFC", _INVISIBLE.sub(r"\1", text))
    return " ".join(text.split())
