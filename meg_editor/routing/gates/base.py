"""The interface of a gate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams


class Gate(nn.Module, ABC):
    """Scores query embeddings (B, E): the higher, the more like an edited query.

    A query is an edit if its score is at least `threshold`. A gate is fitted on the embeddings of
    the edited queries alone. Its whole state, the threshold too, is in `state_dict()`.

    Attributes:
        threshold: () float buffer, the lowest score of an edit.
        measure: what the score is, as reports and pictures name it.
    """

    measure: ClassVar[str] = "score"
    threshold: Tensor

    @classmethod
    @abstractmethod
    def build(cls, hparams: MeGHyperParams, dimension: int) -> Gate:
        """An unfitted gate for embeddings of size `dimension`."""

    @abstractmethod
    def fit(self, edited: Tensor, seed: int = 0) -> None:
        """Learn the edited queries, (N, E)."""

    def changed(self, edited: Tensor) -> Gate:
        """The gate of another set of edited queries (N, E); itself where it learns none."""
        return self

    @abstractmethod
    def score(self, queries: Tensor, match: Tensor) -> Tensor:
        """Scores (B,) of queries (B, E) with the scores (B,) of their `Match` in the index."""
