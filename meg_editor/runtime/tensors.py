"""Rows of tensors: put together, taken, and counted off."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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


def taken(tensor: Tensor, rows: Tensor) -> Tensor:
    """The rows `rows` of a tensor, distinct and in order; all of them are no copy.

    Example:
        >>> taken(torch.eye(2), torch.tensor([1])).tolist()
        [[0.0, 1.0]]
    """
    return tensor if len(rows) == len(tensor) else tensor[rows.to(tensor.device)]


def bits(tensor: Tensor) -> Tensor:
    """The bits of each value as an integer.

    Example:
        >>> bits(torch.tensor([1.0, -0.0])).tolist()
        [1065353216, -2147483648]
    """
    return tensor.view(_INTEGERS[tensor.element_size()])


def chunks(count: int, size: int) -> list[range]:
    """The rows 0 to `count` - 1, `size` at a time.

    Example:
        >>> chunks(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
