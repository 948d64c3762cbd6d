"""Router: queries -> which are edits, of which fact, with what score (eq. 9 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meg_editor.encoder import TextEncoder
from meg_editor.gates import Gate
from meg_editor.index import nearest


@dataclass(frozen=True)
class Routing:
    """Where B queries go.

    Attributes:
        readings: the part of each query that was understood as the question.
        embeddings: (B, E) unit vectors of the readings.
        is_edit: (B,) bool.
        score: (B,) of the gate, to compare with `threshold`.
        threshold: the least score of an edit.
        nearest: (B,) index of the nearest edited query, whether the query is an edit or not.
        cosine: (B,) similarity to it.
    """

    readings: list[str]
    embeddings: Tensor
    is_edit: Tensor
    score: Tensor
    threshold: float
    nearest: Tensor
    cosine: Tensor


class Router:
    """Encoder, gate and the embeddings of the edited queries.

    Args:
        anchors: (N, E) unit vectors of the edited queries.
    """

    def __init__(self, encoder: TextEncoder, gate: Gate, anchors: Tensor) -> None:
        self.encoder, self.gate, self.anchors = encoder, gate, anchors

    @torch.no_grad()
    def route(self, readings: Sequence[Sequence[str]]) -> Routing:
        """Route B queries, each given by its possible readings; the highest score counts.

        A query without any reading is read as the empty text.
        """
        readings = [options or [""] for options in readings]
        flat = [reading for options in readings for reading in options]
        owner = [row for row, options in enumerate(readings) for _ in options]
        embeddings = self.encoder.encode(flat)
        cosine, index = nearest(embeddings, self.anchors)
        score = self.gate.score(embeddings, cosine)
        best = [-1] * len(readings)
        values = score.tolist()
        for position, row in enumerate(owner):
            if best[row] < 0 or values[position] > values[best[row]]:
                best[row] = position
        rows = torch.tensor(best, dtype=torch.long, device=embeddings.device)
        threshold = float(self.gate.threshold)
        return Routing(
            [flat[position] for position in best],
            embeddings[rows],
            score[rows] >= threshold,
            score[rows],
            threshold,
            index[rows],
            cosine[rows],
        )
