"""Routing decisions: which prompts ask for an edit, for which one, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

_SHOWN = 8  # queries in a repr

ReadWith = Literal["turn", "dialogue", "system"]


@dataclass(frozen=True)
class Candidate:
    """An edit which a prompt may ask for.

    Attributes:
        edit: its index.
        span: the part of the prompt which resembles it.
        similarity: of the two, in the index.
        verified: how sure the verifier is, in [0, 1]; 0 without a verifier.
        named: whether the prompt names its subject; one that it does not name is not verified.
        differs: whether it asks for something else in a word for it; then it is not verified.
    """

    edit: int
    span: str
    similarity: float
    verified: float = 0.0
    named: bool = True
    differs: bool = False

    def __str__(self) -> str:
        return f"edit {self.edit} by {self.span!r}: similarity {self.similarity:.3f}{self.verdict}"

    @property
    def verdict(self) -> str:
        """What the verifier said, or why it was not asked; empty without one."""
        if not self.named:
            return ", its subject is not named"
        if self.differs:
            return ", something else is asked for in a word for it"
        return f", verified {self.verified:.3f}" if self.verified else ""


@dataclass(frozen=True)
class RoutedQuery:
    """The routing decision for one query.

    Attributes:
        question: the part of the query that was understood as the question.
        is_edit: whether it is answered with an edit.
        edit: index of the best-matching edited query, whether the query is an edit or not; -1
            where there are no edits.
        score: of the gate, or of the verifier.
        threshold: lowest score of an edit, where it is read so.
        candidates: edits that were considered, the best first.
        verified: whether the score is a verifier's.
        read_with: what the score is of: the turn alone, the turn with those before it, or the turn
            under the system text.

    Example:
        >>> print(RoutedQuery("Who wrote Emma?", True, edit=3, score=0.91, threshold=0.8))
        'Who wrote Emma?': edit 3, score 0.910 >= 0.800
    """

    question: str
    is_edit: bool
    edit: int
    score: float
    threshold: float
    candidates: tuple[Candidate, ...] = ()
    verified: bool = False
    read_with: ReadWith = "turn"

    def __str__(self) -> str:
        what = f"edit {self.edit}" if self.is_edit else f"no edit (nearest {self.edit})"
        sign = ">=" if self.is_edit else "<"
        return f"{self.question!r}: {what}, score {self.score:.3f} {sign} {self.threshold:.3f}"


@dataclass(frozen=True, repr=False)
class Routing:
    """Routing decisions of B queries; a sequence of `RoutedQuery`.

    The tensors stay on the device until they are read.

    Attributes:
        spans: the candidate question spans of each query.
        choice: (B,) which of its spans was understood as the question.
        embeddings: (B, E) unit vectors of these.
        is_edit: (B,) bool.
        score: (B,) of the gate or of the verifier, to compare with `min_score`.
        min_score: () lowest score of an edit, of a turn that is read alone.
        nearest: (B,) index of the best-matching edited query, whether the query is an edit or not;
            -1 where there are no edits.
        cosine: (B,) of the embeddings of these two.
        verified: what the verifier said of each query; empty without one.
        otherwise: the queries whose score is not of the turn alone: how they were read, and their
            lowest score of an edit.
        in_force: the edits by which they were routed (`meg_editor.model.in_force.InForce`).

    Example:
        >>> import torch
        >>> yes, first, score = torch.tensor([True]), torch.tensor([0]), torch.tensor([1.0])
        >>> embeddings, threshold = torch.tensor([[1.0, 0.0]]), torch.tensor(1.0)
        >>> spans = [["Who wrote Emma?"]]
        >>> routing = Routing(spans, first, embeddings, yes, score, threshold, first, score)
        >>> routing[0].is_edit, routing[0].edit
        (True, 0)
        >>> routing
        Routing of 1 queries:
          'Who wrote Emma?': edit 0, score 1.000 >= 1.000
    """

    spans: Sequence[Sequence[str]]
    choice: Tensor
    embeddings: Tensor
    is_edit: Tensor
    score: Tensor
    min_score: Tensor
    nearest: Tensor
    cosine: Tensor
    verified: Sequence[tuple[Candidate, ...]] = ()
    otherwise: Mapping[int, tuple[ReadWith, float]] = field(default_factory=dict)
    in_force: Any = None

    def improved(self, rows: Sequence[int], further: Routing) -> Routing:
        """This one, with those decisions of `further`, the dialogues of `rows`, that are edits."""
        found = further.is_edit.tolist()
        kept = {row: place for place, row in enumerate(rows) if found[place]}
        if not kept:
            return self
        device = self.score.device
        to = torch.tensor(list(kept), device=device)
        source = torch.tensor(list(kept.values()), device=device)
        names = ("choice", "embeddings", "is_edit", "score", "nearest", "cosine")
        tensors = {
            name: getattr(self, name).index_copy(0, to, getattr(further, name)[source])
            for name in names
        }
        spans, verified = list(self.spans), list(self.verified)
        for row, place in kept.items():
            spans[row], verified[row] = further.spans[place], further.verified[place]
        otherwise = dict(self.otherwise)
        otherwise.update((row, ("dialogue", further.threshold)) for row in kept)
        return replace(self, spans=spans, verified=verified, otherwise=otherwise, **tensors)

    def refused(self, scores: Mapping[int, float], limit: float) -> Routing:
        """This one, with the queries of these rows no edits, for their scores below `limit` under
        a system text."""
        if not scores:
            return self
        rows = torch.tensor(list(scores), device=self.score.device)
        values = torch.tensor(list(scores.values()), device=rows.device)
        verified, otherwise = list(self.verified), dict(self.otherwise)
        for row, sure in scores.items():
            first, *others = verified[row]
            verified[row] = (replace(first, verified=sure), *others)
            otherwise[row] = ("system", limit)
        return replace(
            self,
            is_edit=self.is_edit.index_fill(0, rows, False),
            score=self.score.index_copy(0, rows, values.to(self.score.dtype)),
            verified=verified,
            otherwise=otherwise,
        )

    @property
    def questions(self) -> list[str]:
        """The part of each query that was understood as the question."""
        chosen = zip(self.spans, self.choice.tolist(), strict=True)
        return [spans[place] for spans, place in chosen]

    @property
    def threshold(self) -> float:
        """Lowest score of an edit, of a turn that is read alone."""
        return float(self.min_score)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, row: int) -> RoutedQuery:
        row = range(len(self))[row]
        question, edit = self.spans[row][int(self.choice[row])], int(self.nearest[row])
        score = float(self.score[row])
        read_with, threshold = self.otherwise.get(row, ("turn", self.threshold))
        return RoutedQuery(
            question,
            bool(self.is_edit[row]),
            edit,
            score,
            threshold,
            self._candidates(row, edit, question, score),
            bool(self.verified),
            read_with,
        )

    def _candidates(
        self, row: int, edit: int, question: str, score: float
    ) -> tuple[Candidate, ...]:
        if self.verified:
            return self.verified[row]
        return (Candidate(edit, question, score),) if edit >= 0 else ()

    def __iter__(self) -> Iterator[RoutedQuery]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        lines = [str(self[row]) for row in range(min(len(self), _SHOWN))]
        if len(self) > _SHOWN:
            lines.append(f"and {len(self) - _SHOWN} more")
        return "\n".join([f"Routing of {len(self)} queries:", *(f"  {line}" for line in lines)])
