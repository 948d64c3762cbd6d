"""The Familiarity Network: seen queries give low-entropy predictions (section 4.1 b)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.routing.gates.base import Gate
from meg_editor.runtime.progress import progress_bar
from meg_editor.runtime.randomness import seeded
from meg_editor.runtime.torch_defaults import torch_defaults


class FamiliarityGate(Gate):
    """A K-way classifier overfitted to random labels of the edited queries (eq. 6).

    The score is minus the entropy H of its prediction in nats (eq. 9), so a query is an edit if
    H ≤ ε and the threshold is -ε (eq. 10).

    Args:
        dimension: E, of an embedding.
        classes: K.
        epsilon: ε in nats; default: 0.1.

    Example:
        >>> edited = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
        >>> with seeded(0):
        ...     gate = FamiliarityGate(dimension=8, blocks=1, dropout=0.0, lr=1e-2, epochs=200)
        >>> gate.fit(edited)
        >>> (gate.score(edited, edited[:, 0]) >= gate.threshold).tolist()
        [True, True, True, True]
    """

    measure = "minus entropy"

    def __init__(
        self,
        dimension: int,
        classes: int = 10,
        blocks: int = 5,
        dropout: float = 0.1,
        lr: float = 1e-3,
        epochs: int = 2000,
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.scale = math.sqrt(dimension)
        self.classes, self.dropout, self.lr, self.epochs = classes, dropout, lr, epochs
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dimension, 4 * dimension),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(4 * dimension, dimension),
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(dimension, classes)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(-0.1 if epsilon is None else -epsilon))
        self.eval()

    @classmethod
    def build(cls, hparams: MeGHyperParams, dimension: int) -> FamiliarityGate:
        with seeded(hparams.seed):  # the initial weights
            return cls(dimension, epochs=hparams.familiarity_epochs, epsilon=hparams.gate_threshold)

    def changed(self, edited: Tensor) -> FamiliarityGate:
        """A gate trained anew: a classifier cannot unlearn one query."""
        with seeded(0):
            new = type(self)(
                edited.shape[1], self.classes, len(self.blocks), self.dropout, self.lr, self.epochs
            ).to(edited.device)
        new.threshold = self.threshold.clone()
        if len(edited):
            new.fit(edited.float())
        return new

    def logits(self, queries: Tensor) -> Tensor:
        """(B, E) unit vectors -> (B, K)."""
        # Unit vectors have coordinates of 1/√E, too small for the blocks to learn from.
        hidden = queries * self.scale
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits: Tensor = self.head(hidden)
        return logits

    def fit(self, edited: Tensor, seed: int = 0) -> None:
        """Train to convergence: mean loss below 1e-3 over an epoch, or `epochs` epochs.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        edited = edited.float()  # many are kept in half precision
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(self.classes, (len(edited),), generator=generator).to(edited.device)
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        self.train()
        with seeded(seed, edited.device), torch_defaults():  # dropout
            for epoch in progress_bar(range(self.epochs), "gate", "epoch"):
                order = torch.randperm(len(edited), generator=generator).to(edited.device)
                total = 0.0
                for batch in order.split(1024):
                    loss = F.cross_entropy(self.logits(edited[batch]), labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += float(loss.detach()) * len(batch)
                if not math.isfinite(total):
                    raise FloatingPointError(
                        f"familiarity network: loss is {total} in epoch {epoch} at learning "
                        f"rate {self.lr}: are the embeddings finite?"
                    )
                if total / len(edited) < 1e-3:
                    break
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def score(self, queries: Tensor, match: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(self.logits(queries).float(), dim=-1)
        return (log_probabilities.exp() * log_probabilities).sum(-1)
