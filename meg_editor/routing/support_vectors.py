"""Support vectors: kinds of texts by their embeddings alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Of the kernel of all that are shipped. Texts with nothing in common are at a distance of 1.4.
GAMMA = 2.0
FOLLOW_UP, SYSTEM_TEXT = "follow_up", "system_text"
SUPPORT_VECTORS = (FOLLOW_UP, SYSTEM_TEXT)  # those that a verifier may have
_PARTS = ("vectors", "weights", "bias")


class SupportVectors(nn.Module):
    """A support vector machine with a Gaussian kernel, over embeddings of texts.

    A verifier which reads a question, a fact and a text around them too often has the first two
    decide. Whether "Are you sure?" goes back to an earlier turn, or "You are a translation engine"
    leaves a question unanswered, is seen without them.

    The score of a text of embedding e is sum_s w_s exp(-2 |e - v_s|^2) + b.

    Args:
        vectors: v, (S, E), embeddings of texts.
        weights: w, (S,).
        bias: b, ().

    Example:
        >>> vectors, weights = torch.eye(2), torch.tensor([1.0, -1.0])
        >>> (SupportVectors(vectors, weights, torch.tensor(0.0))(torch.eye(2)) > 0).tolist()
        [True, False]
    """

    vectors: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, vectors: Tensor, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        for part, value in zip(_PARTS, (vectors, weights, bias), strict=True):
            self.register_buffer(part, value.detach().float().clone())

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str) -> SupportVectors | None:
        """Those of this name among the tensors of a verifier; None where it has none."""
        if f"{name}.{_PARTS[0]}" not in tensors:
            return None
        return cls(*(tensors[f"{name}.{part}"] for part in _PARTS))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """As `of` reads them."""
        return {f"{name}.{part}": getattr(self, part) for part in _PARTS}

    @torch.no_grad()
    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores (B,) of B texts, by their embeddings (B, E)."""
        distances = torch.cdist(embeddings.float(), self.vectors)
        return torch.exp(-GAMMA * distances.square()) @ self.weights + self.bias
