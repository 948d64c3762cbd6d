"""Which edits a text names, by the words of their subjects."""

from __future__ import annotations

import re

from meg_editor.edits.edition import Edition
from meg_editor.requests.request import EditRequest
from meg_editor.routing.named import stand_in
from meg_editor.routing.subject_names import SubjectNameIndex

_NAMED = 0.5  # lowest share of the subject's words that the text has
_SHARING = 1024  # most edits which share words with a text that are looked at
_MOST_NAMED = 32  # edits named by a text that are followed


class Subjects:
    """The subjects of the edits of an edition, by their words.

    An edit without a subject is named by the words of its prompt that have a capital letter or a
    digit, the first word apart; where there are none, by all its words.
    """

    def __init__(self, edition: Edition) -> None:
        self._edits = edition.edits
        self._index = edition.index.names
        if any(edit.subject is None for edit in edition.edits):
            self._index = SubjectNameIndex([self.name(row) for row in range(len(edition.edits))])

    def name(self, edit: int) -> str:
        """The subject of an edit, or the words which stand for it."""
        return name_in(self._edits[edit])

    def words(self, text: str) -> frozenset[int]:
        """Numbers of the words in `text` which occur in any name."""
        return frozenset(self._index.tokenize([text])[0])

    def named(self, words: frozenset[int]) -> tuple[int, ...]:
        """Edits whose subject is named by these words, the most fully named first.

        Those have half of its words, with the last one: "Einstein", and not "South" for a Korea.
        """
        tokens = [sorted(words)]
        rows = self._index.candidates(tokens, _SHARING).to(self._index.table.device)
        if not rows.numel():
            return ()
        shares = self._index.overlap(tokens, rows)[0].tolist()
        found = [
            (share, edit)
            for share, edit in zip(shares, rows[0].tolist(), strict=True)
            if edit >= 0 and share >= _NAMED and self.words(last_word(self.name(edit))) <= words
        ]
        found.sort(key=lambda pair: -pair[0])
        return tuple(edit for _, edit in found[:_MOST_NAMED])


def name_in(edit: EditRequest) -> str:
    """The subject of an edit, or the words of its prompt which stand for it.

    Example:
        >>> name_in(EditRequest("The capital of Peru is", "Oslo"))
        'Peru'
    """
    if edit.subject is not None:
        return edit.subject
    return stand_in(edit.prompt) or edit.prompt


def last_word(name: str) -> str:
    """The last word of a name, by which it may be called.

    Example:
        >>> last_word("Albert Einstein")
        'Einstein'
    """
    words: list[str] = re.findall(r"\w+", name) or [name]
    return words[-1]
