"""Subject names as posting lists: which edits share words with a query, and how many of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor, nn

from meg_editor.lm.tokens import right_padded

# Scripts which put no spaces between words are compared character by character.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> frozenset[str]:
    """The words of `text`, without case, accents and punctuation.

    Example:
        >>> sorted(words("Beyoncé's Álbum"))
        ['album', 'beyonce', 's']
    """
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return frozenset(_WORD.findall(unicodedata.normalize("NFC", bare).casefold()))


class SubjectNameIndex(nn.Module):
    """The words of N subject names (None where unknown), by name and as posting lists.

    Example:
        >>> index = SubjectNameIndex(["Ada Lovelace", "Ada", None])
        >>> tokens = index.tokenize(["Where was Ada born?"])
        >>> index.overlap(tokens, torch.tensor([[0, 1, 2]])).tolist()
        [[0.5, 1.0, 0.0]]
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        super().__init__()
        counter = CountVectorizer(analyzer=words, binary=True, dtype=np.int32)
        known = [name for name in names if name and words(name)]
        self._vocabulary: dict[str, int] = {}
        table = torch.full((len(names), 0), -1, dtype=torch.int32)
        self._starts, self._postings = np.zeros(1, np.int64), np.zeros(0, np.int32)
        if known:
            counts = counter.fit_transform([name or "" for name in names])
            self._vocabulary = {word: int(number) for word, number in counter.vocabulary_.items()}
            # The names with word w are _postings[_starts[w] : _starts[w + 1]].
            by_word = counts.tocsc()
            by_word.sort_indices()
            self._starts, self._postings = by_word.indptr, by_word.indices.astype(np.int32)
            rows = np.split(counts.indices, counts.indptr[1:-1])
            table = right_padded([row.tolist() for row in rows], fill=-1).int()
        self.table: Tensor  # (N, W) word numbers, filled up with -1
        self.register_buffer("table", table, persistent=False)

    @property
    def bytes_on_host(self) -> int:
        """Of the posting lists, without the words themselves."""
        return int(self._postings.nbytes + self._starts.nbytes)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The numbers of those words of B texts which occur in any name."""
        known = self._vocabulary
        return [[known[word] for word in sorted(words(text)) if word in known] for text in texts]

    def overlap(self, tokens: Sequence[Sequence[int]], rows: Tensor) -> Tensor:
        """Share of the words of each name that occur in the text.

        Args:
            tokens: of B texts, by `tokenize`.
            rows: (B, C) indices of names.

        Returns:
            (B, C) in [0, 1]; 0 where no name is known.
        """
        texts = right_padded(tokens, fill=-2).to(rows.device, non_blocking=True)
        names = self.table[rows]  # (B, C, W)
        shared = (names.unsqueeze(3) == texts[:, None, None, :]).any(3).sum(2)
        return shared / (names >= 0).sum(2).clamp_min(1)

    def known(self, rows: Tensor) -> Tensor:
        """Whether there is a name at each of the indices `rows`: bool, of its shape."""
        return (self.table[rows] >= 0).any(-1)

    def candidates(self, tokens: Sequence[Sequence[int]], limit: int) -> Tensor:
        """Names which share words with the texts: (B, C ≤ limit) indices, filled up with -1.

        Rare words come first: they are more telling. A word which would exceed `limit` ends the
        search.
        """
        starts = self._starts
        rows: list[list[int]] = []
        for numbers in tokens:
            names: dict[int, None] = {}
            for word in sorted(numbers, key=lambda word: int(starts[word + 1] - starts[word])):
                posting = self._postings[starts[word] : starts[word + 1]]
                if names and len(names) + len(posting) > limit:
                    break
                names.update(dict.fromkeys(posting[:limit].tolist()))
            rows.append(list(names))
        return right_padded(rows, fill=-1)
