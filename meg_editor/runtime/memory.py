"""Memory: free bytes, activation bytes of a forward pass, rows which fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

# Activations are not all: gradients and work space come on top.
_MARGIN = 2.0


def free_bytes(device: torch.device | str) -> int:
    """Free memory of a GPU; for any other device, available memory of the machine.

    Example:
        >>> free_bytes("cpu") > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def saved_bytes(forward: Callable[[], Any], weights: Iterable[Tensor]) -> int:
    """Bytes of the activations which a forward pass saves for its backward pass.

    Args:
        forward: runs it; its result must depend on a tensor which requires a gradient.
        weights: tensors which do not count.

    Example:
        >>> x = torch.ones(256, requires_grad=True)
        >>> saved_bytes(lambda: (x * 2).square(), [x])
        1024
    """
    skipped = {storage.data_ptr() for weight in weights for storage in _storages(weight)}
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        for storage in _storages(tensor):
            if storage.data_ptr() not in skipped:
                sizes[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: one that its own node saves would hold the node, the node it, in
        # C++, where no garbage collector sees the cycle. Not None: its storage must not be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        held = forward()  # held, so that no storage is freed and counted under its address again
    del held
    return sum(sizes.values())


def _storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """Storages of a tensor: several if it is quantised by torchao."""
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _storages(getattr(tensor, part))
    else:
        yield tensor.untyped_storage()


def rows_within(
    budget: float, forward: Callable[[], Any], rows: int, weights: Iterable[Tensor]
) -> int:
    """Number of rows, at least 1, whose activations fit into `budget` bytes.

    Args:
        forward: a forward pass of `rows` rows.
        weights: as for `saved_bytes`.
    """
    row_bytes = _MARGIN * saved_bytes(forward, weights) / rows
    return max(1, int(budget / max(row_bytes, 1.0)))
