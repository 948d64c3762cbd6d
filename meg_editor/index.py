"""Nearest neighbours among unit vectors, in chunks."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def nearest(queries: Tensor, keys: Tensor, chunk: int = 65536) -> tuple[Tensor, Tensor]:
    """Cosine to, and index of, the nearest key: (B, E), (N, E) -> (B,) float, (B,) int64.

    Memory is O(B · chunk), whatever N is.
    """
    best = torch.full((len(queries),), -torch.inf, device=queries.device)
    where = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    for start in range(0, len(keys), chunk):
        value, index = (queries @ keys[start : start + chunk].T).max(dim=1)
        where = torch.where(value > best, index + start, where)
        best = torch.maximum(best, value)
    return best, where
