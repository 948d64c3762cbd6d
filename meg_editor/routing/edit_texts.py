"""What the texts of edits say of a prompt: is it one of them, and does it name their subject?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial

from meg_editor.config.unicode_text import UNSPACED, canonical_text
from meg_editor.requests.request import EditRequest
from meg_editor.requests.spans import surface
from meg_editor.routing.another import is_another
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.named import is_named, numbered, stand_in, without_trade
from meg_editor.routing.spelling import corrected, in_full, spelled
from meg_editor.routing.subject_names import SubjectNameIndex, words, words_in_order

_UNSPACED = re.compile(f"[{UNSPACED}]")


class EditTexts:
    """The texts of N edits.

    Args:
        names: of their subjects.
        row_of_key: the row of each edited prompt, by `EditRequest.key`.

    Example:
        >>> from meg_editor.lm.reference import reference_encoder_path
        >>> encoder = TextEncoder.from_pretrained(reference_encoder_path())
        >>> edits = [EditRequest("The capital of Peru is", "Oslo", "Peru")]
        >>> texts = EditTexts(edits, encoder, SubjectNameIndex(["Peru"]))
        >>> texts.row_of("User: Hi!", "The  capital of Peru is")
        0
        >>> texts.named("Is Peru large?", [0])
        {0}
    """

    def __init__(
        self,
        edits: Sequence[EditRequest],
        encoder: TextEncoder,
        names: SubjectNameIndex,
        row_of_key: Mapping[str, int] | None = None,
    ) -> None:
        self.edits, self._encoder, self._names = edits, encoder, names
        if row_of_key is None:
            row_of_key = {edit.key: row for row, edit in enumerate(edits)}
        self._row_of_key = row_of_key
        self._blind: dict[int, frozenset[str]] = {}  # of the edits which have been compared

    def row_of(self, *texts: str) -> int | None:
        """The edit whose prompt is the first of these texts that is one."""
        rows = (self._row_of_key.get(canonical_text(text)) for text in texts)
        return next((row for row in rows if row is not None), None)

    def named(self, text: str, rows: Sequence[int]) -> set[int]:
        """Those edits at `rows` whose subject a text may mean."""
        said = numbered(text)
        return {
            row
            for row in rows
            if is_named(self.edits[row], said)
            and not self._is_ordinary(self.edits[row].subject, said)
            and not is_another(self.edits[row], text)
            and self.has_unread(text, row)
        }

    def _is_ordinary(self, subject: str | None, said: Collection[str]) -> bool:
        """Whether a text has but ordinary words of a name: "the general" of General Motors."""
        left = without_trade(words_in_order(subject or ""), said)
        return bool(left) and all(map(self._encoder.is_word, left))

    @cached_property
    def may_be_unread(self) -> bool:
        """Whether an edit has letters that its encoder may not know."""
        return not all(edit.prompt.isascii() for edit in self.edits)

    def has_unread(self, text: str, row: int) -> bool:
        """Whether a text has those words of an edit which the encoder cannot read, but must.

        All of these are one to it: "What does 🐌 mean?" is "What does 🦒 mean?".
        """
        if self.edits[row].prompt.isascii():
            return True
        if (blind := self._blind.get(row)) is None:
            blind = self._blind[row] = self._unread(self.edits[row])
        said = _plain(text)
        return all(word in said for word in blind)

    def spelled(self, row: int, text: str) -> str:
        """`text` with the subject of an edit as that spells it."""
        return in_full(self.edits[row], spelled(self.edits[row], text, self._is_word))

    def corrected(self, text: str) -> str:
        """`text` with misspelt words as the subjects of edits have them."""
        return corrected(text, partial(self._names.near, there=words(text)), self._is_word)

    def _is_word(self, word: str) -> bool:
        return self._names.has(word) or self._encoder.is_word(word)

    def _unread(self, edit: EditRequest) -> frozenset[str]:
        """The unread words by which an edit is known: those of its subject's name.

        All words where the rest does not say what is asked, or there is no name; characters of a
        script that is read in general ("是") are not among these, nor are marks.
        """
        prompt = surface(edit.prompt)
        name = edit.subject or stand_in(prompt)
        whole, own = ({*map(_plain, words)} for words in self._encoder.unread([prompt, name]))
        rest = _plain(prompt)
        for word in sorted((*whole, *_plain(name).split()), key=len, reverse=True):
            rest = rest.replace(word, " ")
        if name and any(map(str.isalnum, rest)):
            return frozenset(own)
        of_script = _UNSPACED.search(rest) is not None
        return frozenset(
            word
            for word in whole
            if not all(unicodedata.category(c).startswith("P") for c in word)
            and not (of_script and _UNSPACED.fullmatch(word))
        )


def _plain(text: str) -> str:
    return canonical_text(text).casefold()
