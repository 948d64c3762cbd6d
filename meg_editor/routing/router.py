"""Router: queries -> which are edits, of which fact, with what score (eq. 9 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import Gate
from meg_editor.routing.hidden_states import HiddenStateReader
from meg_editor.routing.index import QueryIndex


@dataclass(frozen=True)
class Routing:
    """Where B queries go. Everything stays on the device until it is asked for.

    Attributes:
        options: the possible questions in each query.
        choice: (B,) which of its options was understood as the question.
        embeddings: (B, E) unit vectors of these.
        is_edit: (B,) bool.
        score: (B,) of the gate, to compare with `limit`.
        limit: () the least score of an edit.
        nearest: (B,) index of the nearest edited query, whether the query is an edit or not.
        cosine: (B,) of the embeddings of these two, whatever the names.
    """

    options: Sequence[Sequence[str]]
    choice: Tensor
    embeddings: Tensor
    is_edit: Tensor
    score: Tensor
    limit: Tensor
    nearest: Tensor
    cosine: Tensor

    @property
    def readings(self) -> list[str]:
        """The part of each query that was understood as the question."""
        chosen = zip(self.options, self.choice.tolist(), strict=True)
        return [options[place] for options, place in chosen]

    @property
    def threshold(self) -> float:
        """The least score of an edit."""
        return float(self.limit)


def build_index(
    edits: Sequence[EditRequest],
    encoder: TextEncoder,
    states: HiddenStateReader,
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
        self, encoder: TextEncoder, gate: Gate, index: QueryIndex, states: HiddenStateReader
    ) -> None:
        self.encoder, self.gate, self.index, self.states = encoder, gate, index, states

    @torch.no_grad()
    def route(self, readings: Sequence[Sequence[str]]) -> Routing:
        """Route B queries, each given by its possible readings; the highest score counts.

        A query without any reading is read as the empty text.
        """
        options = [list(given) or [""] for given in readings]
        flat = [reading for given in options for reading in given]
        embeddings = self.encoder.encode(flat)
        limit = self.gate.threshold
        match = self.index.search(
            embeddings, flat, lambda rows: self.states.read([flat[row] for row in rows]), limit
        )
        score = self.gate.score(embeddings, match.similarity)
        # (B, most options) places in `flat`; who has fewer options has the first one repeated.
        width = max(map(len, options), default=1)
        starts = accumulate(map(len, options), initial=0)
        table = [
            [start + (n if n < len(given) else 0) for n in range(width)]
            for start, given in zip(starts, options, strict=False)
        ]
        places = torch.tensor(table, dtype=torch.long).reshape(len(options), width)
        places = places.to(score.device, non_blocking=True)
        best = score[places].argmax(1, keepdim=True)
        rows = places.gather(1, best)[:, 0]
        return Routing(
            options,
            rows - places[:, 0],
            embeddings[rows],
            score[rows] >= limit,
            score[rows],
            limit,
            match.index[rows],
            match.cosine[rows],
        )
