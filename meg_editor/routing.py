"""Router: queries -> which are edits, of which fact, with what score (eq. 9 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meg_editor.encoder import TextEncoder
from meg_editor.gates import Gate
from meg_editor.hparams import MeGHyperParams
from meg_editor.index import QueryIndex
from meg_editor.requests import EditRequest
from meg_editor.states import StateReader


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
        cosine: (B,) of the embeddings of these two, whatever the names.
    """

    readings: list[str]
    embeddings: Tensor
    is_edit: Tensor
    score: Tensor
    threshold: float
    nearest: Tensor
    cosine: Tensor


def index_queries(
    edits: Sequence[EditRequest],
    encoder: TextEncoder,
    states: StateReader,
    background: Sequence[str],
    hparams: MeGHyperParams,
) -> QueryIndex:
    """Index the queries of `edits`; `background` are queries which are not edited.

    A `gate_state_weight` that is not known yet counts as 0.
    """
    queries = [edit.prompt for edit in edits]
    heeded = hparams.gate_state_weight or 0.0
    return QueryIndex(
        encoder.encode(queries),
        [edit.subject for edit in edits],
        states.read(queries) if heeded else None,
        states.read(background) if heeded and background else None,
        name_weight=hparams.gate_name_weight,
        state_weight=heeded,
    )


class Router:
    """Encoder, gate, the index of the edited queries, and the LLM's states for it."""

    def __init__(
        self, encoder: TextEncoder, gate: Gate, index: QueryIndex, states: StateReader
    ) -> None:
        self.encoder, self.gate, self.index, self.states = encoder, gate, index, states

    @torch.no_grad()
    def route(self, readings: Sequence[Sequence[str]]) -> Routing:
        """Route B queries, each given by its possible readings; the highest score counts.

        A query without any reading is read as the empty text.
        """
        readings = [options or [""] for options in readings]
        flat = [reading for options in readings for reading in options]
        owner = [row for row, options in enumerate(readings) for _ in options]
        embeddings = self.encoder.encode(flat)
        threshold = float(self.gate.threshold)
        match = self.index.search(
            embeddings,
            flat,
            lambda rows: self.states.read([flat[row] for row in rows]),
            threshold,
        )
        score = self.gate.score(embeddings, match.similarity)
        best = [-1] * len(readings)
        values = score.tolist()
        for position, row in enumerate(owner):
            if best[row] < 0 or values[position] > values[best[row]]:
                best[row] = position
        rows = torch.tensor(best, dtype=torch.long, device=embeddings.device)
        return Routing(
            [flat[position] for position in best],
            embeddings[rows],
            score[rows] >= threshold,
            score[rows],
            threshold,
            match.index[rows],
            match.cosine[rows],
        )
