"""Subject names as posting lists: which edits share words with a query, and how many of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from meg_editor.config.unicode_text import UNSPACED
from meg_editor.lm.tokens import right_padded

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")  # of such scripts a character
_LETTERS = "\u3099\u309a"  # voiced kana: パ is another letter than ハ
_NAMES = 64  # of a word, at most, which a misspelt one is compared with


def words(text: str) -> frozenset[str]:
    """The words of `text`, without case, accents and punctuation.

    Example:
        >>> sorted(words("Beyoncé's Álbum"))
        ['album', 'beyonce', 's']
    """
    return frozenset(words_in_order(text))


def words_in_order(text: str) -> list[str]:
    """The same with their order and repetitions."""
    apart = unicodedata.normalize("NFKD", text)
    bare = "".join(c for c in apart if c in _LETTERS or not unicodedata.combining(c))
    return _WORD.findall(unicodedata.normalize("NFC", bare).casefold())


class SubjectNameIndex(nn.Module):
    """The words of N subject names (None where unknown), by name and as posting lists.

    Example:
        >>> index = SubjectNameIndex(["Ada Lovelace", "Ada", None])
        >>> tokens = index.tokenize(["Where was Ada born?"])
        >>> index.overlap(tokens, torch.tensor([[0, 1, 2]])).tolist()
        [[0.5, 1.0, 0.0]]
    """

    def __init__(self, names: Sequence[str | None] = ()) -> None:
        super().__init__()
        self._words: list[str] = []  # by number
        self.table: Tensor  # (N, W) word numbers, filled up with -1
        self.register_buffer("table", torch.zeros(0, 0, dtype=torch.int32), persistent=False)
        self._extend(np.zeros((0, 0), np.int32), names)

    def changed(self, retained: Tensor, names: Sequence[str | None] = ()) -> SubjectNameIndex:
        """An index of the names at the rows `retained` of this one, and of further names after
        them; as if built of these alone, in a fraction of the time.

        Example:
            >>> index = SubjectNameIndex(["Ada Lovelace", "Ada"])
            >>> index.changed(torch.tensor([1]), ["Bea"]).tokenize(["Ada Lovelace and Bea"])
            [[0, 1]]
        """
        table = self.table[retained.to(self.table.device)].cpu().numpy()
        used = np.unique(table[table >= 0])
        numbers = np.full(len(self._words) + 1, -1, np.int32)  # the last one is for the filling -1
        numbers[used] = np.arange(len(used), dtype=np.int32)
        new = type(self)()
        new._words = [self._words[number] for number in used.tolist()]
        new._extend(numbers[table], names)
        return new.to(self.table.device)

    def _extend(self, table: NDArray[np.int32], names: Sequence[str | None]) -> None:
        """Set table and posting lists: of the rows `table`, then of further names."""
        self._vocabulary = {word: number for number, word in enumerate(self._words)}
        rows = []
        for name in names:
            said = sorted(words(name or ""))
            rows.append([self._vocabulary.setdefault(w, len(self._vocabulary)) for w in said])
        self._words = list(self._vocabulary)
        width = max([table.shape[1] if len(table) else 0, *map(len, rows)])
        whole = np.full((len(table) + len(rows), width), -1, np.int32)
        whole[: len(table), : table.shape[1]] = table[:, :width]
        for place, row in enumerate(rows, start=len(table)):
            whole[place, : len(row)] = row
        self.table, self._numbers = torch.from_numpy(whole), whole  # on the device, on the host
        # The names with word w are _postings[_starts[w] : _starts[w + 1]].
        names_with, columns = np.nonzero(whole >= 0)
        numbers = whole[names_with, columns]
        self._postings = names_with[np.argsort(numbers, kind="stable")].astype(np.int32)
        counts = np.bincount(numbers, minlength=len(self._words))
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @property
    def bytes_on_host(self) -> int:
        """Of the posting lists, without the words themselves."""
        return int(self._postings.nbytes + self._starts.nbytes)

    def has(self, word: str) -> bool:
        """Whether a word, as `words` gives it, occurs in any name."""
        return word in self._vocabulary

    def near(self, word: str, there: Collection[str]) -> list[str]:
        """The words of names that differ from `word` in one letter after the first: left out, too
        many, another one, or in its neighbour's place.

        Args:
            there: the words that the rest of a name has to consist of: Tim Davie is not Marion
                Davies.

        Example:
            >>> SubjectNameIndex(["Norway", "Marion Davies"]).near("norwaay", [])
            ['norway']
        """
        parts = [(word[:place], word[place:]) for place in range(1, len(word) + 1)]
        others = {before + after[1:] for before, after in parts}
        others |= {before + after[1::-1] + after[2:] for before, after in parts}
        for letter in self._letters:
            others |= {before + letter + after for before, after in parts}
            others |= {before + letter + after[1:] for before, after in parts}
        known = sorted(other for other in others if other in self._vocabulary)
        return [other for other in known if self._is_whole(self._vocabulary[other], there)]

    def _is_whole(self, number: int, there: Collection[str]) -> bool:
        """Whether a name with this word has its other words in `there`."""
        rows = self._postings[self._starts[number] : self._starts[number + 1]][:_NAMES]
        return any(
            all(other in (-1, number) or self._words[other] in there for other in name)
            for name in self._numbers[rows].tolist()
        )

    @cached_property
    def _letters(self) -> set[str]:
        return set("".join(self._words))

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
