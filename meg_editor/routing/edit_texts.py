"""What the texts of edits say of a prompt: is it one of them, and does it name their subject?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

from meg_editor.config.unicode_text import canonical_text
from meg_editor.requests.request import EditRequest
from meg_editor.requests.spans import surface
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.named import is_another, is_named, numbered
from meg_editor.routing.spelling import spelled
from meg_editor.routing.subject_names import SubjectNameIndex


class EditTexts:
    """The texts of N edits.

    Args:
        names: of their subjects.

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
        self, edits: Sequence[EditRequest], encoder: TextEncoder, names: SubjectNameIndex
    ) -> None:
        self._edits, self._encoder, self._names = edits, encoder, names

    @cached_property
    def _row_of_key(self) -> dict[str, int]:
        return {edit.key: row for row, edit in enumerate(self._edits)}

    def row_of(self, *texts: str) -> int | None:
        """The edit whose prompt is the first of these texts that is one."""
        rows = (self._row_of_key.get(canonical_text(text)) for text in texts)
        return next((row for row in rows if row is not None), None)

    def named(self, text: str, rows: Sequence[int]) -> set[int]:
        """Those edits at `rows` whose subject a text may mean."""
        said = numbered(text)
        named = [
            row
            for row in rows
            if is_named(self._edits[row], said) and not is_another(self._edits[row], text)
        ]
        # To an encoder all words that it cannot read are one: so the text must have the edit's.
        unread = self._encoder.unread([surface(self._edits[row].prompt) for row in named])
        return {row for row, words in zip(named, unread, strict=True) if _has(text, words)}

    def are_alike(self, row: int, text: str, unread: Collection[str]) -> bool:
        """Whether an edit's prompt and a text, of which the encoder cannot read some words, have
        the same ones."""
        prompt = surface(self._edits[row].prompt)
        return _has(prompt, unread) and _has(text, self._encoder.unread([prompt])[0])

    def spelled(self, row: int, text: str) -> str:
        """`text` with the subject of an edit as that spells it."""
        return spelled(
            self._edits[row],
            text,
            lambda word: self._names.has(word) or self._encoder.is_word(word),
        )


def _has(text: str, words: Collection[str]) -> bool:
    said = text.casefold()
    return all(word.casefold() in said for word in words)
