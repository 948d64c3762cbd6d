"""The neuron bank: stored neurons, retrieved by their nearest key."""

from __future__ import annotations

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.base import FittableGenerator
from meg_editor.routing.index import nearest
from meg_editor.runtime.processes import Processes
from meg_editor.runtime.tensors import joined, taken


class NeuronBank(FittableGenerator):
    """Keys (N, E) and neurons (N, P) in float16; the upper bound of every generator.

    Args:
        dimension: E, of a query embedding.
        size: P, of a neuron.
        edits: N.

    Example:
        >>> bank = NeuronBank(dimension=2, size=3, edits=2)
        >>> _ = bank.fit(torch.eye(2), torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
        >>> bank.generate(torch.tensor([[0.6, 0.8]])).tolist()
        [[4.0, 5.0, 6.0]]
    """

    def __init__(self, dimension: int, size: int, edits: int) -> None:
        super().__init__()
        self.keys: Tensor
        self.neurons: Tensor
        self.register_buffer("keys", torch.zeros(edits, dimension, dtype=torch.float16))
        self.register_buffer("neurons", torch.zeros(edits, size, dtype=torch.float16))

    @classmethod
    def build(cls, hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> NeuronBank:
        return cls(dimension, size, edits)

    def fit(
        self,
        conditions: Tensor,
        neurons: Tensor,
        irrelevant: Tensor | None = None,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> list[float]:
        self.keys = conditions.half()
        self.neurons = neurons.half()
        return []

    def changed(self, retained: Tensor, anchors: Tensor, neurons: Tensor) -> NeuronBank:
        """A bank of the edits at the rows `retained` of this one, and of A further ones.

        Args:
            retained: (R,) rows, in order.
            anchors, neurons: (A, E) and (A, P) of further edits.
        """
        new = type(self)(self.keys.shape[1], self.neurons.shape[1], 0)
        new.keys = joined(taken(self.keys, retained), anchors)
        new.neurons = joined(taken(self.neurons, retained), neurons)
        return new

    def of_edits(self, rows: Tensor, anchors: Tensor) -> Tensor:
        return self.neurons[rows].float()

    def stored_rows(self, count: int) -> Tensor:
        return torch.ones(count, dtype=torch.bool)

    @torch.no_grad()
    def generate(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        _, index = nearest(conditions, self.keys)
        index = index[:, 0]
        return self.neurons[index].float()
