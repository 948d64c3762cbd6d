"""Does a text name a subject? The words of names, compared as people do, for many at once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from meg_editor.lm.tokens import right_padded

# Scripts which put no spaces between words are compared character by character.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> frozenset[str]:
    """The words of `text`, without case, accents and punctuation."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return frozenset(_WORD.findall(unicodedata.normalize("NFC", bare).casefold()))


class SubjectNameIndex(nn.Module):
    """The words of N names (None where unknown), as numbers which a device can compare."""

    def __init__(self, names: Sequence[str | None]) -> None:
        super().__init__()
        self._vocabulary: dict[str, int] = {}
        known = self._vocabulary
        numbers = [
            [known.setdefault(word, len(known)) for word in sorted(words(name or ""))]
            for name in names
        ]
        lengths = np.array([len(row) for row in numbers], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(numbers), np.int64, int(lengths.sum()))
        owner = np.repeat(np.arange(len(numbers)), lengths)
        # The names with word w are _bearers[_starts[w] : _starts[w + 1]].
        order = np.argsort(flat, kind="stable")
        self._bearers = owner[order].astype(np.int32)
        self._starts = np.searchsorted(flat[order], np.arange(len(known) + 1))
        table = np.full((len(numbers), int(lengths.max(initial=0))), -1, dtype=np.int32)
        table[owner, np.arange(len(flat)) - (np.cumsum(lengths) - lengths)[owner]] = flat
        self.table: Tensor  # (N, W) word numbers, filled up with -1
        self.register_buffer("table", torch.from_numpy(table), persistent=False)

    @property
    def bytes_on_host(self) -> int:
        """Of the table from words to names, without the words themselves."""
        return int(self._bearers.nbytes + self._starts.nbytes)

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """The numbers of those words of B texts which stand in any name."""
        known = self._vocabulary
        return [[known[word] for word in sorted(words(text)) if word in known] for text in texts]

    def shares(self, asked: Sequence[Sequence[int]], rows: Tensor) -> Tensor:
        """Of the words of each name (B, C) the share, in [0, 1], that is among those of the text.

        1 where no name is known: there is nothing that the text fails to name.
        """
        texts = right_padded(asked, fill=-2).to(rows.device, non_blocking=True)
        names = self.table[rows]  # (B, C, W)
        there = (names.unsqueeze(3) == texts[:, None, None, :]).any(3).sum(2)
        count = (names >= 0).sum(2)
        return torch.where(count > 0, there / count.clamp_min(1), 1.0)

    def bearers(self, asked: Sequence[Sequence[int]], most: int) -> Tensor:
        """Names which share words with the texts: (B, C ≤ most) rows, filled up with -1.

        Rare words first: they tell more. A word which would exceed `most` ends the search.
        """
        starts = self._starts
        rows: list[list[int]] = []
        for numbers in asked:
            found: dict[int, None] = {}
            for word in sorted(numbers, key=lambda word: int(starts[word + 1] - starts[word])):
                sharing = self._bearers[starts[word] : starts[word + 1]]
                if found and len(found) + len(sharing) > most:
                    break
                found.update(dict.fromkeys(sharing[:most].tolist()))
            rows.append(list(found))
        return right_padded(rows, fill=-1)
