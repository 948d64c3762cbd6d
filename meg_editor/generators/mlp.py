"""The MLP generator: a residual regressor (table 7)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.trainer import LearnedGenerator
from meg_editor.runtime.randomness import seeded


class MLPGenerator(LearnedGenerator):
    """Residual MLP: query embedding -> neuron in one pass, trained on the mean squared error.

    Args:
        hparams: the `generator_*` settings.
        dimension: E, of a query embedding.
        size: P, of a neuron.

    Example:
        >>> import torch
        >>> hparams = MeGHyperParams.preset("default", generator_width=64, generator_depth=1)
        >>> MLPGenerator(hparams, dimension=8, size=10).generate(torch.zeros(2, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, hparams: MeGHyperParams, dimension: int, size: int) -> None:
        super().__init__(hparams, dimension, size)
        width = hparams.generator_width
        self.stem = nn.Linear(dimension, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Dropout(hparams.generator_dropout),
                nn.Linear(4 * width, width),
            )
            for _ in range(hparams.generator_depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
        self.eval()

    @classmethod
    def build(cls, hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> MLPGenerator:
        with seeded(hparams.seed):
            return cls(hparams, dimension, size)

    def predict(self, conditions: Tensor, steps: int | None = None) -> Tensor:
        hidden = self.stem(conditions * math.sqrt(self.dimension))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        values: Tensor = self.head(hidden)
        return values

    def loss(self, conditions: Tensor, targets: Tensor, *drawn: Tensor) -> Tensor:
        return (self.predict(conditions).float() - targets).square().mean()
