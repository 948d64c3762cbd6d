"""How many rows fit into memory?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch import Tensor

# What is saved for the backward pass is not all: gradients and work space come on top.
_MARGIN = 2.0


def free_bytes(device: torch.device | str) -> int:
    """Of a GPU or, for any other device, of the machine."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def saved_bytes(forward: Callable[[], Any], weights: Iterable[Tensor]) -> int:
    """Bytes which a forward pass keeps for its backward pass, `weights` not counted."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = forward()  # held, so that no storage is freed and counted under its address again
    del held
    return sum(sizes.values())


def rows_within(
    budget: float, forward: Callable[[], Any], rows: int, weights: Iterable[Tensor]
) -> int:
    """How many rows fit into `budget` bytes, one at least, if `forward` handles `rows`."""
    each = _MARGIN * saved_bytes(forward, weights) / rows
    return max(1, int(budget / max(each, 1.0)))
