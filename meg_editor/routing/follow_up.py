"""Follow-ups: does a turn go back to what was asked before it?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

GAMMA = 2.0  # of the kernel; texts which have nothing in common are at a distance of about 1.4
VECTORS, WEIGHTS, BIAS = (f"follow_up.{name}" for name in ("vectors", "weights", "bias"))


class FollowUp(nn.Module):
    """A support vector machine over the embedding of a turn alone.

    "Are you sure?" goes back to an earlier turn and "Thanks! Write me a poem." does not, whatever
    was asked. A verifier which reads the whole dialogue sees the question and the fact in it, and
    too often has them decide.

    The score of a turn of embedding e is sum_s w_s exp(-2 |e - v_s|^2) + b.

    Args:
        vectors: v, (S, E), embeddings of turns.
        weights: w, (S,).
        bias: b, ().

    Example:
        >>> vectors, weights = torch.eye(2), torch.tensor([1.0, -1.0])
        >>> follow_up = FollowUp(vectors, weights, torch.tensor(0.0))
        >>> follow_up(torch.eye(2)).tolist()
        [True, False]
    """

    vectors: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, vectors: Tensor, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        for name, value in (("vectors", vectors), ("weights", weights), ("bias", bias)):
            self.register_buffer(name, value.float())

    @classmethod
    def of(cls, adapter: Mapping[str, Tensor]) -> FollowUp | None:
        """That among the tensors of a verifier; None where it has learned none."""
        if VECTORS not in adapter:
            return None
        return cls(adapter[VECTORS], adapter[WEIGHTS], adapter[BIAS])

    @torch.no_grad()
    def forward(self, turns: Tensor) -> Tensor:
        """Of B turns, by their embeddings (B, E): whether they go back to an earlier one, (B,)."""
        return self.score(turns) >= 0

    def score(self, turns: Tensor) -> Tensor:
        """Of B turns, by their embeddings (B, E): positive for one that goes back, (B,)."""
        distances = torch.cdist(turns.float(), self.vectors)
        return torch.exp(-GAMMA * distances.square()) @ self.weights + self.bias


def tensors_of(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a `FollowUp` among the tensors of a verifier."""
    return {name: adapter[name] for name in (VECTORS, WEIGHTS, BIAS) if name in adapter}
