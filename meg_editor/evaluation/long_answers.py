"""Metrics of long answers: token recall, ROUGE-L (Lin, 2004), embedding similarity (UnKE)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from meg_editor.config.unicode_text import UNSPACED
from meg_editor.evaluation.metrics import normalise


def tokens(text: str) -> list[str]:
    """Words and numbers in lower case, as ROUGE counts them; of scripts without blanks characters.

    Example:
        >>> tokens("Born in 1912, in Lima.")
        ['born', 'in', '1912', 'in', 'lima']
    """
    return re.findall(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+", text.casefold())


def token_recall(answer: str, target: str) -> float:
    """|answer ∩ target| / |target| over words, each as often as it occurs; in [0, 1].

    Of a target without words, such as "€": 1 if it stands in the answer.

    Example:
        >>> token_recall("She was born in Lima.", "in Lima, Peru")
        0.6666666666666666
    """
    expected = Counter(tokens(target))
    if not expected:
        return float(normalise(target) in normalise(answer))
    return (expected & Counter(tokens(answer))).total() / expected.total()


def rouge_l(answer: str, target: str) -> float:
    """F1 of the longest common subsequence of words: 2 · L / (|answer| + |target|), in [0, 1].

    1 if both are empty.

    Example:
        >>> rouge_l("Lima in Peru", "in Lima, Peru")
        0.6666666666666666
    """
    ours, theirs = tokens(answer), tokens(target)
    if not ours or not theirs:
        return float(ours == theirs)
    ids = {word: number for number, word in enumerate(dict.fromkeys(theirs))}
    row = np.zeros(len(theirs) + 1, dtype=np.int64)
    column = np.array([ids[word] for word in theirs])
    for word in ours:
        # L(i, j) = L(i-1, j-1) + 1 on a match, else the larger neighbour.
        matched = np.where(column == ids.get(word, -1), row[:-1] + 1, row[1:])
        row = np.concatenate([[0], np.maximum.accumulate(np.maximum(matched, row[1:]))])
    return 2 * int(row[-1]) / (len(ours) + len(theirs))


def embedding_similarity(
    answers: Sequence[str],
    targets: Sequence[str],
    encode: Callable[[Sequence[str]], Tensor],
) -> float:
    """Mean cosine of the embeddings of answers and of their targets, in [-1, 1].

    Args:
        encode: B texts -> unit vectors (B, E).

    Example:
        >>> import torch
        >>> embedding_similarity(["Lima"], ["Lima"], lambda texts: torch.tensor([[0.0, 1.0]]))
        1.0
    """
    return float((encode(answers) * encode(targets)).sum(-1).mean())
