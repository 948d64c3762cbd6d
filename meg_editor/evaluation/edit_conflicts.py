"""Near-duplicate edits, and those of them that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from meg_editor.evaluation.metrics import normalise
from meg_editor.requests.request import EditRequest
from meg_editor.routing.index import nearest


@dataclass(frozen=True)
class NearDuplicate:
    """Two edits whose prompts lie close together.

    Attributes:
        first, second: their indices, `first` < `second`.
        cosine: of their embeddings.
        contradictory: whether their targets differ.
    """

    first: int
    second: int
    cosine: float
    contradictory: bool


def near_duplicates(
    edits: Sequence[EditRequest], anchors: Tensor, min_cosine: float = 0.95, neighbours: int = 8
) -> list[NearDuplicate]:
    """Pairs of edits whose embeddings (N, E) have at least cosine `min_cosine`, closest first.

    Each edit is compared with its nearest `neighbours`. Edits of
    different known subjects are no duplicates.

    Example:
        >>> import torch
        >>> prompts = {"Ada was born in": "Lima", "Ada's birthplace is": "Oslo"}
        >>> edits = [EditRequest(prompt, target) for prompt, target in prompts.items()]
        >>> near_duplicates(edits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))[0].contradictory
        True
    """
    cosine, index = nearest(anchors, anchors, neighbours + 1)
    pairs: dict[tuple[int, int], float] = {}
    for row, (values, others) in enumerate(zip(cosine.tolist(), index.tolist(), strict=True)):
        for value, other in zip(values, others, strict=True):
            if other != row and value >= min_cosine and _may_be_same(edits[row], edits[other]):
                pairs[min(row, other), max(row, other)] = value
    return [
        NearDuplicate(first, second, value, _differ(edits[first], edits[second]))
        for (first, second), value in sorted(pairs.items(), key=lambda item: -item[1])
    ]


def _may_be_same(one: EditRequest, other: EditRequest) -> bool:
    known = one.subject and other.subject
    return not known or one.subject.casefold() == other.subject.casefold()  # type: ignore[union-attr]


def _differ(one: EditRequest, other: EditRequest) -> bool:
    return normalise(one.target_new) != normalise(other.target_new)
