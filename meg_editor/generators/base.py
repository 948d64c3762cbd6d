"""The interface of a weight generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.runtime.processes import Processes


@dataclass(frozen=True)
class NeuronScaling:
    """Maps neurons (…, P) to values a network likes to predict, and back."""

    mean: Tensor  # (P,)
    scale: Tensor  # (P,)

    def forward(self, neurons: Tensor) -> Tensor:
        return (neurons - self.mean) / self.scale

    def inverse(self, values: Tensor) -> Tensor:
        return values * self.scale + self.mean


class WeightGenerator(nn.Module, ABC):
    """Produces neurons (B, P) from query embeddings (B, E).

    The whole state is in `state_dict()`, so that it travels in safetensors.
    """

    @classmethod
    @abstractmethod
    def build(
        cls, hparams: MeGHyperParams, dimension: int, size: int, edits: int
    ) -> WeightGenerator:
        """An unfitted generator: E = `dimension`, P = `size`, N = `edits`."""

    @abstractmethod
    def fit(
        self,
        conditions: Tensor,
        neurons: Tensor,
        irrelevant: Tensor | None = None,
        seed: int = 0,
        processes: Processes | None = None,
    ) -> list[float]:
        """Learn the pairs (N, E) -> (N, P); returns the loss of each step.

        `irrelevant` (M, E) are pseudo-irrelevant queries for the zero neuron (DA, A.3). Several
        `processes` each compute the gradient of a part of every batch.
        """

    @abstractmethod
    def generate(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        """(B, E) -> (B, P), deterministic; `steps` overrides the sampling steps, where any."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of the state as it is stored."""
        return sum(value.numel() * value.element_size() for value in self.state_dict().values())
