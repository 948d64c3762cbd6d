"""Which edited query does a query mean? Search by meaning, by name and by the LLM's own state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meg_editor.routing.subject_names import SubjectNameIndex

_CANDIDATES = 8  # compared by state
_NAMED = 64  # edits at most which share a name with a query and are considered for it
_ROUNDED = 8  # more candidates among rounded keys: the very best may look like the next ones
_MANY = 65536  # edits from which on memory counts more than the last digits of a cosine

# Positions among the queries -> the LLM's states at their last token (R, D).
ReadStates = Callable[[list[int]], Tensor]


@dataclass(frozen=True)
class Match:
    """The best edited query for each of B queries.

    Attributes:
        index: (B,) int64, which of the N it is.
        similarity: (B,) in [-1, 1]; 1 for an edited query itself.
        cosine: (B,) of the embeddings, the part of the similarity that is the paper's.
    """

    index: Tensor
    similarity: Tensor
    cosine: Tensor


class QueryIndex(nn.Module):
    """The N edited queries, ranked by `(1 - n - s) · cosine + n · named + s · agreement`.

    Embeddings tell what is asked, but blur of whom: "Where was Ada born?" and "Where was Bea
    born?" lie close together. `named` is the share of the subject's words which the query names,
    1 for an edit without a known subject. And no encoder has met every wording: `agreement` is
    the cosine between the LLM's own states, standardised, at the last tokens of the two queries.
    The paper has the cosine alone: n = s = 0. With s = 0 a search never waits for the device.

    Args:
        anchors: (N, E) unit vectors of the edited queries; kept in float16 where they are many.
        subjects: N names, None where unknown.
        states: (N, D) of the LLM, needed if s > 0.
        background: (M, D) states of queries which are not edited: what is usual.
        name_weight: n, in [0, 1).
        state_weight: s, in [0, 1 - n).
    """

    def __init__(
        self,
        anchors: Tensor,
        subjects: Sequence[str | None],
        states: Tensor | None = None,
        background: Tensor | None = None,
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
        self.names = SubjectNameIndex(subjects)
        self.anchors: Tensor
        self.register_buffer("anchors", anchors.half() if len(anchors) > _MANY else anchors.float())
        self.states: Tensor  # (N, D) standardised, unit length
        self.usual: Tensor  # (2, D) mean and spread of states
        if state_weight:
            if states is None or len(states) != len(anchors):
                found = "none" if states is None else len(states)
                raise ValueError(f"state_weight > 0: expected {len(anchors)} states, got {found}")
            usual = torch.stack([torch.zeros_like(states[0]), torch.ones_like(states[0])])
            if background is not None and len(background) > 1:
                usual = torch.stack([background.mean(0), background.std(0).clamp_min(1e-6)])
            self.register_buffer("usual", usual.float())
            self.register_buffer("states", self._standard(states).half())

    def _standard(self, states: Tensor) -> Tensor:
        return F.normalize((states.float() - self.usual[0]) / self.usual[1], dim=-1)

    def search(
        self,
        embeddings: Tensor,
        texts: Sequence[str],
        read_states: ReadStates | None = None,
        least: float | Tensor = -1.0,
    ) -> Match:
        """Queries as unit vectors (B, E) and as B texts -> their matches.

        Args:
            read_states: needed if s > 0.
            least: a similarity below it need not be exact, only too low: states are read of no
                query which cannot reach it.
        """
        name, state = self.name_weight, self.state_weight
        cosine, index = nearest(embeddings, self.anchors, _CANDIDATES if name or state else 1)
        shares: Tensor | float = 0.0
        if name:
            asked = self.names.read(texts)
            more = self.names.bearers(asked, _NAMED).to(index.device, non_blocking=True)
            known = (more.unsqueeze(2) == index.unsqueeze(1)).any(2) | (more < 0)
            more = more.clamp_min(0)
            there = torch.einsum("be,bce->bc", embeddings, self.anchors[more].to(embeddings))
            cosine = torch.cat([cosine, there.masked_fill(known, -torch.inf)], 1)
            index = torch.cat([index, more], 1)
            shares = self.names.shares(asked, index)
        similarity = (1 - name - state) * cosine + name * shares
        similarity, best = similarity.topk(min(_CANDIDATES, similarity.shape[1]), dim=1)
        index, cosine = index.gather(1, best), cosine.gather(1, best)
        if state and read_states is not None:
            # To wait for the device here costs less than to read states in vain.
            rows = (similarity.amax(1) + state >= least).nonzero().flatten()
            if len(rows):
                own = self._standard(read_states(rows.tolist()).to(cosine.device))
                theirs = self.states[index[rows]].to(own)  # (R, candidates, D)
                similarity[rows] += state * (theirs * own.unsqueeze(1)).sum(-1)
        best = similarity.argmax(1, keepdim=True)
        return Match(*(values.gather(1, best)[:, 0] for values in (index, similarity, cosine)))


@torch.no_grad()
def nearest(
    queries: Tensor, keys: Tensor, count: int = 1, chunk: int = 65536
) -> tuple[Tensor, Tensor]:
    """Cosines to, and indices of, the `count` nearest keys (or all N), best first.

    (B, E), (N, E) unit vectors -> (B, count) float, (B, count) int64. Memory is O(B · chunk),
    whatever N is. Keys in half precision are searched in it and the best compared exactly.
    """
    rounded = keys.dtype != queries.dtype
    # A CPU has to unpack half precision: worth it once for several queries, not for one.
    unpack = rounded and queries.device.type == "cpu" and len(queries) > 4
    asked = queries if unpack else queries.to(keys.dtype)
    wanted = min(count + (_ROUNDED if rounded else 0), len(keys))
    best = asked.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(keys), chunk):
        cosines = asked @ keys[start : start + chunk].to(asked.dtype).T
        value, index = cosines.topk(min(wanted, cosines.shape[1]), dim=1)
        value, index = torch.cat([best, value], 1), torch.cat([where, index + start], 1)
        best, order = value.topk(min(wanted, value.shape[1]), dim=1)
        where = index.gather(1, order)
    if rounded:
        best = torch.einsum("be,bce->bc", queries, keys[where].to(queries))
        best, order = best.topk(min(count, len(keys)), dim=1)
        where = where.gather(1, order)
    return best, where
