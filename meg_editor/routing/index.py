"""Which edited query does a query match? Search by embedding, subject name and hidden state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meg_editor.routing.subject_names import SubjectNameIndex
from meg_editor.runtime.tensors import chunks, joined, taken

_CANDIDATES = 8  # compared by hidden state
_NAMED = 64  # most edits considered because they share a name with a query
_ROUNDED = 8  # more candidates among rounded keys: the very best may look like the next ones
_MANY = 65536  # edits from which on memory counts more than the last digits of a cosine
_QUERIES = 1024  # searched at once

# Indices among the queries -> hidden-state features of these (R, D).
ReadStates = Callable[[list[int]], Tensor]


@dataclass(frozen=True)
class Match:
    """The best edited query for each of B queries, or the C best ones.

    Attributes:
        index: (B,) or (B, C) int64, which of the N it is.
        score: (B,) or (B, C) in [-1, 1], descending; 1 for an edited query itself.
        cosine: (B,) or (B, C) of the embeddings, the part of the score that is the paper's.
    """

    index: Tensor
    score: Tensor
    cosine: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Match]) -> Match:
        """The queries of all parts; where a part has fewer candidates, its best one fills up."""
        width = max(part.index.shape[1] for part in parts)
        filled = []
        for part in parts:
            more = width - part.index.shape[1]
            filled.append(
                (
                    torch.cat([part.index, part.index[:, :1].expand(-1, more)], 1),
                    F.pad(part.score, (0, more), value=-torch.inf),
                    F.pad(part.cosine, (0, more), value=-torch.inf),
                )
            )
        return cls(*(torch.cat(column) for column in zip(*filled, strict=True)))

    def best(self) -> Match:
        """Of C candidates the first: (B,)."""
        return Match(self.index[:, 0], self.score[:, 0], self.cosine[:, 0])


class QueryIndex(nn.Module):
    """The N edited queries, ranked by `(1 - n - s) * cosine + n * name_overlap + s * state_cosine`.

    Embeddings encode the relation, but little of the subject: "Where was Ada born?" and "Where was
    Bea born?" lie close together. `name_overlap` is the share of the subject's words that occur in
    the query; for an edit without a known subject the other two terms share its weight. No encoder
    has met every phrasing: `state_cosine` compares the LM's own hidden states, standardised, at
    the last tokens of the two queries. The paper has the cosine alone: n = s = 0. With s = 0 a
    search never waits for the device.

    Args:
        anchors: (N, E) unit vectors of the edited queries; kept in float16 where they are many.
        subjects: N names, None where unknown.
        states: (N, D) hidden-state features, needed if s > 0.
        usual: (2, D) mean and deviation of the features of other queries; default: 0 and 1.
        name_weight: n, in [0, 1).
        state_weight: s, in [0, 1 - n).

    Example:
        >>> index = QueryIndex(torch.eye(2), ["Ada", "Bea"], name_weight=0.2)
        >>> match = index.search(torch.tensor([[0.6, 0.8]]), ["Where was Bea born?"])
        >>> match.index.tolist(), round(float(match.score), 2)
        ([1], 0.84)
    """

    def __init__(
        self,
        anchors: Tensor,
        subjects: Sequence[str | None],
        states: Tensor | None = None,
        usual: Tensor | None = None,
        *,
        name_weight: float = 0.0,
        state_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if len(anchors) != len(subjects):
            raise ValueError(
                f"expected one subject (or None) per anchor, got {len(subjects)} and {len(anchors)}"
            )
        self.name_weight, self.state_weight = name_weight, state_weight
        self.names = SubjectNameIndex(subjects).to(anchors.device)
        self.anchors: Tensor
        self.register_buffer("anchors", _as_kept(anchors))
        self.states: Tensor  # (N, D) standardised, unit length
        self.usual: Tensor  # (2, D) mean and standard deviation of features
        if state_weight:
            if states is None or len(states) != len(anchors):
                count = "none" if states is None else len(states)
                raise ValueError(f"state_weight > 0: expected {len(anchors)} states, got {count}")
            if usual is None:
                usual = torch.stack([torch.zeros_like(states[0]), torch.ones_like(states[0])])
            self.register_buffer("usual", usual.to(states.device).float())
            self.register_buffer("states", self._standardise(states).half())

    def _standardise(self, states: Tensor) -> Tensor:
        return F.normalize((states.float() - self.usual[0]) / self.usual[1], dim=-1)

    @property
    def unit_states(self) -> Tensor | None:
        """(N, D) standardised features of unit length; None without states."""
        return self.states if self.state_weight else None

    def changed(
        self,
        retained: Tensor,
        anchors: Tensor,
        subjects: Sequence[str | None],
        unit_states: Tensor | None = None,
    ) -> QueryIndex:
        """An index of the edits at the rows `retained` of this one, and of further ones.

        Args:
            retained: (R,) rows, in order.
            anchors: (A, E) embeddings of further edits, with A subjects.
            unit_states: (A, D) of these, as in `unit_states`; needed if s > 0.

        Example:
            >>> index = QueryIndex(torch.eye(2), ["Ada", "Bea"], name_weight=0.2)
            >>> index.changed(torch.tensor([1]), torch.eye(2)[:1], ["Cid"]).anchors.tolist()
            [[0.0, 1.0], [1.0, 0.0]]
        """
        empty = self.anchors[:0]
        states, usual = (self.states[:0], self.usual) if self.state_weight else (None, None)
        new = type(self)(
            *(empty, [], states, usual),
            name_weight=self.name_weight,
            state_weight=self.state_weight,
        )
        retained = retained.to(empty.device)
        new.names = self.names.changed(retained, subjects)
        both = joined(taken(self.anchors, retained), anchors)
        new.anchors = _as_kept(both)
        if self.state_weight:
            if unit_states is None and len(anchors):
                raise ValueError(f"state_weight > 0: expected {len(anchors)} states, got none")
            further = self.states[:0] if unit_states is None else unit_states
            new.states = joined(taken(self.states, retained), further)
        return new

    def standardised(self, features: Tensor) -> Tensor:
        """Unit states (B, D) of features (B, D) of further queries."""
        return self._standardise(features.to(self.usual.device)).half()

    def search(
        self,
        embeddings: Tensor,
        texts: Sequence[str],
        hidden_states: ReadStates | None = None,
        min_score: float | Tensor = -1.0,
    ) -> Match:
        """Best-matching edited query for each of B queries; see `candidates`."""
        return self.candidates(embeddings, texts, hidden_states, min_score).best()

    def candidates(
        self,
        embeddings: Tensor,
        texts: Sequence[str],
        hidden_states: ReadStates | None = None,
        min_score: float | Tensor = -1.0,
    ) -> Match:
        """Best-matching edited queries for each of B queries: C ≤ 8 of them, the best first.

        Args:
            embeddings: unit vectors, (B, E).
            texts: the B queries, for the subject names.
            hidden_states: callable giving (R, D) features for the rows it is given; only
                evaluated for rows whose upper bound reaches `min_score`. Needed if s > 0.
            min_score: rows that cannot reach it may return any score below it.
        """
        if not isinstance(min_score, Tensor):
            min_score = torch.full((), min_score, device=embeddings.device)
        min_scores = min_score.expand(len(embeddings))
        matches = []
        for rows in chunks(len(embeddings), _QUERIES) or [range(0)]:
            part = slice(rows.start, rows.stop)
            read = None if hidden_states is None else partial(_read_from, hidden_states, part.start)
            matches.append(self._candidates(embeddings[part], texts[part], read, min_scores[part]))
        return matches[0] if len(matches) == 1 else Match.joined(matches)

    def _candidates(
        self,
        embeddings: Tensor,
        texts: Sequence[str],
        hidden_states: ReadStates | None,
        min_score: Tensor,
    ) -> Match:
        name, state = self.name_weight, self.state_weight
        cosine, index = nearest(embeddings, self.anchors, _CANDIDATES if name or state else 1)
        state_weight = torch.full_like(cosine, state)
        score = (1 - state) * cosine
        if name:
            tokens = self.names.tokenize(texts)
            named = self.names.candidates(tokens, _NAMED).to(index.device, non_blocking=True)
            known = (named.unsqueeze(2) == index.unsqueeze(1)).any(2) | (named < 0)
            named = named.clamp_min(0)
            theirs = torch.einsum("be,bce->bc", embeddings, self.anchors[named].to(embeddings))
            cosine = torch.cat([cosine, theirs.masked_fill(known, -torch.inf)], 1)
            index = torch.cat([index, named], 1)
            known_name = self.names.known(index)
            others = torch.where(known_name, 1.0, 1 / (1 - name))  # share the weight of the name
            overlap = self.names.overlap(tokens, index) * known_name
            score = others * (1 - name - state) * cosine + name * overlap
            state_weight = state * others
        score, best = score.topk(min(_CANDIDATES, score.shape[1]), dim=1)
        index, cosine = index.gather(1, best), cosine.gather(1, best)
        state_weight = state_weight.gather(1, best)
        if state and hidden_states is not None:
            # To wait for the device here costs less than to read states in vain.
            rows = ((score + state_weight).amax(1) >= min_score).nonzero().flatten()
            if len(rows):
                states = self._standardise(hidden_states(rows.tolist()).to(cosine.device))
                edited = self.states[index[rows]].to(states)  # (R, candidates, D)
                agreement = (edited * states.unsqueeze(1)).sum(-1)
                score[rows] += state_weight[rows] * agreement
                score, best = score.sort(1, descending=True)
                index, cosine = index.gather(1, best), cosine.gather(1, best)
        return Match(index, score, cosine)


def _read_from(hidden_states: ReadStates, start: int, rows: list[int]) -> Tensor:
    return hidden_states([start + row for row in rows])


def _as_kept(anchors: Tensor) -> Tensor:
    return anchors.half() if len(anchors) > _MANY else anchors.float()


@torch.no_grad()
def nearest(
    queries: Tensor, keys: Tensor, count: int = 1, chunk: int = 65536
) -> tuple[Tensor, Tensor]:
    """Cosines to, and indices of, the `count` nearest keys (or all N), best first.

    (B, E), (N, E) unit vectors -> (B, count) float, (B, count) int64. Memory is O(B * chunk),
    whatever N is. Keys in half precision are searched in it and the best compared exactly.

    Example:
        >>> cosine, index = nearest(torch.tensor([[0.6, 0.8]]), torch.eye(2), count=2)
        >>> index.tolist(), cosine.tolist()
        ([[1, 0]], [[0.8..., 0.6...]])
    """
    rounded = keys.dtype != queries.dtype
    # A CPU has to unpack half precision: worth it once for several queries, not for one.
    unpack = rounded and queries.device.type == "cpu" and len(queries) > 4
    compared = queries if unpack else queries.to(keys.dtype)
    limit = min(count + (_ROUNDED if rounded else 0), len(keys))
    best = compared.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(keys), chunk):
        cosines = compared @ keys[start : start + chunk].to(compared.dtype).T
        value, index = cosines.topk(min(limit, cosines.shape[1]), dim=1)
        value, index = torch.cat([best, value], 1), torch.cat([where, index + start], 1)
        best, order = value.topk(min(limit, value.shape[1]), dim=1)
        where = index.gather(1, order)
    if rounded:
        best = torch.einsum("be,bce->bc", queries, keys[where].to(queries))
        best, order = best.topk(min(count, len(keys)), dim=1)
        where = where.gather(1, order)
    return best, where
