"""Router: queries -> which are edits, of which fact, with what score (eq. 9 and 10)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

_SHOWN = 8  # queries in a repr


@dataclass(frozen=True)
class RoutedQuery:
    """The routing decision for one query.

    Attributes:
        question: the part of the query that was understood as the question.
        is_edit: whether it is answered with an edit.
        edit: index of the best-matching edited query, whether the query is an edit or not.
        score: of the gate.
        threshold: lowest score of an edit.

    Example:
        >>> print(RoutedQuery("Who wrote Emma?", True, edit=3, score=0.91, threshold=0.8))
        'Who wrote Emma?': edit 3, score 0.910 >= 0.800
    """

    question: str
    is_edit: bool
    edit: int
    score: float
    threshold: float

    def __str__(self) -> str:
        what = f"edit {self.edit}" if self.is_edit else f"no edit (nearest {self.edit})"
        sign = ">=" if self.is_edit else "<"
        return f"{self.question!r}: {what}, score {self.score:.3f} {sign} {self.threshold:.3f}"


@dataclass(frozen=True, repr=False)
class Routing:
    """Routing decisions of B queries; a sequence of `RoutedQuery`.

    The tensors stay on the device until they are read.

    Attributes:
        candidates: the candidate question spans of each query.
        choice: (B,) which of its candidates was understood as the question.
        embeddings: (B, E) unit vectors of these.
        is_edit: (B,) bool.
        score: (B,) of the gate, to compare with `min_score`.
        min_score: () lowest score of an edit.
        nearest: (B,) index of the best-matching edited query, whether the query is an edit or not.
        cosine: (B,) of the embeddings of these two.

    Example:
        >>> import torch
        >>> yes, first, score = torch.tensor([True]), torch.tensor([0]), torch.tensor([1.0])
        >>> embeddings, threshold = torch.tensor([[1.0, 0.0]]), torch.tensor(1.0)
        >>> candidates = [["Who wrote Emma?"]]
        >>> routing = Routing(candidates, first, embeddings, yes, score, threshold, first, score)
        >>> routing[0].is_edit, routing[0].edit
        (True, 0)
        >>> routing
        Routing of 1 queries:
          'Who wrote Emma?': edit 0, score 1.000 >= 1.000
    """

    candidates: Sequence[Sequence[str]]
    choice: Tensor
    embeddings: Tensor
    is_edit: Tensor
    score: Tensor
    min_score: Tensor
    nearest: Tensor
    cosine: Tensor

    @property
    def questions(self) -> list[str]:
        """The part of each query that was understood as the question."""
        chosen = zip(self.candidates, self.choice.tolist(), strict=True)
        return [spans[place] for spans, place in chosen]

    @property
    def threshold(self) -> float:
        """Lowest score of an edit."""
        return float(self.min_score)

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, row: int) -> RoutedQuery:
        return RoutedQuery(
            self.questions[row],
            bool(self.is_edit[row]),
            int(self.nearest[row]),
            float(self.score[row]),
            self.threshold,
        )

    def __iter__(self) -> Iterator[RoutedQuery]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        lines = [str(self[row]) for row in range(min(len(self), _SHOWN))]
        if len(self) > _SHOWN:
            lines.append(f"and {len(self) - _SHOWN} more")
        return "\n".join([f"Routing of {len(self)} queries:", *(f"  {line}" for line in lines)])


def build_index(
    edits: Sequence[EditRequest],
    encoder: TextEncoder,
    states: HiddenStateReader,
    usual: Tensor | None,
    hparams: MeGHyperParams,
) -> QueryIndex:
    """Index of the queries of N edits.

    Args:
        usual: mean and deviation (2, D) of the features of other queries, from `states.usual`.
        hparams: a `gate_state_weight` that is not known yet counts as 0.
    """
    queries = [edit.prompt for edit in edits]
    state_weight = hparams.gate_state_weight or 0.0
    return QueryIndex(
        encoder.encode(queries),
        [edit.subject for edit in edits],
        states.read(queries) if state_weight else None,
        usual,
        name_weight=hparams.gate_name_weight,
        state_weight=state_weight,
    )


class Router:
    """Routes queries (eq. 9 and 10): encoder, index of the edited queries, hidden states, gate.

    Example:
        >>> from meg_editor import MeGHyperParams, fit, load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu", encoder_steps=0,
        ...                                 gate_threshold=0.8)
        >>> model, tokenizer = load_model(hparams)
        >>> facts = [{"prompt": "The capital of France is", "target_new": "Lima"}]
        >>> edited, _ = fit(model, tokenizer, facts, hparams)
        >>> edited.router.route([["The capital of France is"]])[0].is_edit
        True
    """

    def __init__(
        self, encoder: TextEncoder, gate: Gate, index: QueryIndex, states: HiddenStateReader
    ) -> None:
        self.encoder, self.gate, self.index, self.states = encoder, gate, index, states

    @torch.no_grad()
    def route(self, candidates: Sequence[Sequence[str]]) -> Routing:
        """Route B queries, each given by its candidate question spans; the highest score counts.

        A query without any candidate is read as the empty text.
        """
        spans = [list(given) or [""] for given in candidates]
        flat = [span for given in spans for span in given]
        embeddings = self.encoder.encode(flat)
        min_score = self.gate.threshold
        match = self.index.search(
            embeddings,
            flat,
            lambda rows: self.states.read([flat[row] for row in rows]),
            min_score,
        )
        score = self.gate.score(embeddings, match.score)
        # (B, most candidates) places in `flat`; who has fewer has the first one repeated.
        width = max(map(len, spans), default=1)
        starts = accumulate(map(len, spans), initial=0)
        table = [
            [start + (n if n < len(given) else 0) for n in range(width)]
            for start, given in zip(starts, spans, strict=False)
        ]
        places = torch.tensor(table, dtype=torch.long).reshape(len(spans), width)
        places = places.to(score.device, non_blocking=True)
        best = score[places].argmax(1, keepdim=True)
        rows = places.gather(1, best)[:, 0]
        return Routing(
            spans,
            rows - places[:, 0],
            embeddings[rows],
            score[rows] >= min_score,
            score[rows],
            min_score,
            match.index[rows],
            match.cosine[rows],
        )
