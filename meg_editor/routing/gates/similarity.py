"""The similarity gate: an edit is a query close to an edited query."""

from __future__ import annotations

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.routing.gates.base import Gate


class SimilarityGate(Gate):
    """The score is that of the best-matching edited query, in [-1, 1].

    Not in the paper. With an encoder tuned against hard negatives and an index of names it
    separates paraphrases from neighbours far better than entropy does.

    Example:
        >>> gate = SimilarityGate(threshold=0.5)
        >>> score = gate.score(torch.zeros(2, 8), torch.tensor([0.9, 0.1]))
        >>> (score >= gate.threshold).tolist()
        [True, False]
    """

    measure = "similarity"

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(0.6 if threshold is None else threshold))

    @classmethod
    def build(cls, hparams: MeGHyperParams, dimension: int) -> SimilarityGate:
        return cls(hparams.gate_threshold)

    def fit(self, edited: Tensor, seed: int = 0) -> None:
        """Nothing to learn: the index has the edited queries."""

    def score(self, queries: Tensor, match: Tensor) -> Tensor:
        return match
