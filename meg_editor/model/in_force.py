"""The edits in force in a model: an edition with its router and the cache of its neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meg_editor.edits.edition import Edition
from meg_editor.generators.cache import NeuronCache
from meg_editor.routing.router import Router
from meg_editor.routing.routing import Routing


@dataclass(frozen=True)
class InForce:
    """What one call routes and answers with, while other edits may come into force.

    Attributes:
        anchored: whether a neuron depends on its edit alone (`generator_anchored`).
        size: P, of a neuron.
    """

    edition: Edition
    router: Router
    cache: NeuronCache
    anchored: bool
    size: int

    def of_edits(self, edits: Sequence[int]) -> Tensor:
        """Neurons (R, P) of R edits; recent ones come from the cache."""
        return self.cache.get(edits, self.edition.neurons)

    def neurons(self, routing: Routing, steps: int | None = None) -> Tensor | None:
        """Neurons (B, P) of a routing: zeros for queries that are no edit; None if no query is one.

        Args:
            steps: sampling steps; default: those of the hyper-parameters.
        """
        # The only copy from the device: B indices, -1 for queries that need no neuron.
        edits = torch.where(routing.is_edit, routing.nearest, -1).tolist()
        rows = [row for row, edit in enumerate(edits) if edit >= 0]
        if not rows:
            return None
        asked = [edits[row] for row in rows]
        where = torch.tensor(rows).to(routing.nearest.device, non_blocking=True)
        if self.anchored and steps is None:
            found = self.of_edits(asked)
        else:
            found = self._sampled(routing.embeddings[where], asked, steps)
        neurons = found.new_zeros(len(edits), self.size)
        neurons[where] = found
        return neurons

    def _sampled(self, embeddings: Tensor, edits: list[int], steps: int | None) -> Tensor:
        """Neurons (R, P) by the generator where it was trained on the edit, else the stored one."""
        edition = self.edition
        conditions = embeddings
        if self.anchored:
            conditions = edition.index.anchors[torch.tensor(edits)].float()
        found = embeddings.new_zeros(len(edits), self.size, dtype=torch.float32)
        stored = [row for row, edit in enumerate(edits) if edition.edits[edit].stored]
        trained = [row for row, edit in enumerate(edits) if not edition.edits[edit].stored]
        if stored:
            found[stored] = edition.neurons([edits[row] for row in stored])
        if trained:
            found[trained] = edition.generator.generate(conditions[trained], steps)
        return found
