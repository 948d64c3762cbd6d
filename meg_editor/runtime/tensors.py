"""Rows of tensors put together."""

from __future__ import annotations

import torch
from torch import Tensor


def joined(first: Tensor, second: Tensor) -> Tensor:
    """The rows of both, (M + N, W), of the first one's type and device.

    Of a tensor without rows the width does not count.

    Example:
        >>> joined(torch.ones(1, 2), torch.zeros(0, 0)).tolist()
        [[1.0, 1.0]]
    """
    if not len(second):
        return first
    return torch.cat([first, second.to(first)]) if len(first) else second.to(first)
