"""What a rival that decides query by query has decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Decision(NamedTuple):
    """Whether a query is answered with an edit.

    Attributes:
        is_edit: whether it is.
        edit: index of the nearest edit, whether it is or not.
        score: by which this was decided.

    Example:
        >>> Decision(True, edit=3, score=0.9).edit
        3
    """

    is_edit: bool
    edit: int
    score: float


def decisions(scores: Tensor, edits: Tensor, accepts: Callable[[float], bool]) -> list[Decision]:
    """Decisions on B queries.

    Args:
        scores: (B,) of the nearest edits.
        edits: (B,) which these are.
        accepts: whether a score is that of an edit.

    Example:
        >>> import torch
        >>> scores, edits = torch.tensor([0.5, 0.9]), torch.tensor([4, 2])
        >>> [row.is_edit for row in decisions(scores, edits, lambda score: score > 0.7)]
        [False, True]
    """
    pairs = zip(scores.tolist(), edits.tolist(), strict=True)
    return [Decision(accepts(score), edit, score) for score, edit in pairs]
