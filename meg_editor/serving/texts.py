"""Text from tokens as they come, and where it stops."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from meg_editor.lm.answers import verbatim
from meg_editor.lm.protocols import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"  # a letter whose last bytes are still to come


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token, which may be a part of a letter.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> token_bytes(tokenizer, tokenizer.convert_tokens_to_ids("a"))
        b'a'
    """
    text = tokenizer.decode([token])
    if BROKEN not in text:
        return text.encode()
    piece = tokenizer.convert_ids_to_tokens(token)
    if named := re.fullmatch("<0x([0-9A-F]{2})>", piece):  # SentencePiece's
        return bytes.fromhex(named[1])
    letters = _byte_letters()
    return bytes(letters[letter] for letter in piece if letter in letters) or text.encode()


@cache
def _byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in the pieces of GPT-2's tokenizer and its kin."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


class Detokenizer:
    """The text of an answer, piece by piece.

    A piece is decoded together with the one before it: a token alone may be half a letter, and
    its blank depends on what stands before it.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> _, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> detokenizer = Detokenizer(tokenizer)
        >>> ids = tokenizer("Jane Austen", add_special_tokens=False)["input_ids"]
        >>> "".join(detokenizer.push([token]) for token in ids).strip()
        'Jane Austen'
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._given = 0  # of the last piece, and behind it

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens add, once its last letter is whole."""
        self._ids += ids
        before = verbatim(self._tokenizer, self._ids[self._start : self._given])
        text = verbatim(self._tokenizer, self._ids[self._start :])
        if text.endswith(BROKEN) or len(text) < len(before):
            return ""
        if len(text) > len(before):  # else a special token: the blank behind it is not the first
            self._start, self._given = self._given, len(self._ids)
        return text[len(before) :]

    def rest(self) -> str:
        """What was held back, at the end of the answer: half a letter is shown as such."""
        before = verbatim(self._tokenizer, self._ids[self._start : self._given])
        text = verbatim(self._tokenizer, self._ids[self._start :])
        self._start = self._given = len(self._ids)
        return text[len(before) :]


class Stops:
    """Cuts a text before the first of some strings, and holds back what may be the start of one.

    Example:
        >>> stops = Stops(["END"])
        >>> [stops.push("one E"), stops.push("two EN"), stops.push("D three")], stops.found
        (['one ', 'Etwo ', ''], True)
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What can be given out now, of this text and what was held back."""
        text = self._held + text
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string`."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
