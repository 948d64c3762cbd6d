"""The interface of a weight generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.runtime.processes import Processes


@dataclass(frozen=True)
class NeuronScaling:
    """Standardisation of neurons (..., P), and its inverse.

    Attributes:
        mean: (P,).
        scale: (P,).

    Example:
        >>> scaling = NeuronScaling(torch.tensor([1.0]), torch.tensor([2.0]))
        >>> scaling.forward(torch.tensor([5.0])).item(), scaling.inverse(torch.tensor([2.0])).item()
        (2.0, 5.0)
    """

    mean: Tensor
    scale: Tensor

    def forward(self, neurons: Tensor) -> Tensor:
        return (neurons - self.mean) / self.scale

    def inverse(self, values: Tensor) -> Tensor:
        return values * self.scale + self.mean


class WeightGenerator(nn.Module, ABC):
    """Base class of generators: query embeddings (B, E) -> neurons (B, P).

    The whole state is in `state_dict()`, so that safetensors hold it.
    """

    @abstractmethod
    def generate(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        """Neurons (B, P) for query embeddings (B, E), deterministic.

        Args:
            steps: sampling steps, for generators that sample; default: the hyper-parameters'.
        """

    def of_edits(self, rows: Tensor, anchors: Tensor) -> Tensor:
        """Neurons (R, P) of edits, float32.

        Args:
            rows: (R,) which of the edits it was fitted on.
            anchors: (R, E) embeddings of their queries.
        """
        return self.generate(anchors)

    def stored_rows(self, count: int) -> Tensor:
        """(N,) bool: which of the N = `count` edits have a stored neuron."""
        return torch.zeros(count, dtype=torch.bool)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the state dict."""
        return sum(value.nbytes for value in self.state_dict().values())


class FittableGenerator(WeightGenerator):
    """A generator that is fitted to neurons; the setting `generator` names one."""

    @classmethod
    @abstractmethod
    def build(
        cls, hparams: MeGHyperParams, dimension: int, size: int, edits: int
    ) -> FittableGenerator:
        """An unfitted generator for E = `dimension`, P = `size`, N = `edits`."""

    @abstractmethod
    def fit(
        self,
        conditions: Tensor,
        neurons: Tensor,
        irrelevant: Tensor | None = None,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> list[float]:
        """Learn pairs of query embedding and neuron.

        Args:
            conditions: (N, E) embeddings of the edited queries.
            neurons: (N, P).
            irrelevant: (M, E) embeddings of pseudo-irrelevant queries, which get the zero neuron
                (data augmentation, A.3).
            processes: data parallelism: each computes the gradient of a part of every batch.

        Returns:
            The loss of each step; empty if nothing was trained.

        Raises:
            FloatingPointError: the loss is not finite.
        """
