"""A least-recently-used cache of generated neurons."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class NeuronCache:
    """Least-recently-used cache of the neurons (P,) of `size` edits, on their device.

    Valid if a neuron depends on the edit alone (`generator_anchored`); `clear` it when the
    generator changes. Thread-safe.

    Example:
        >>> cache = NeuronCache(2)
        >>> cache.get([3, 3], lambda edits: torch.ones(len(edits), 4)).shape
        torch.Size([2, 4])
        >>> len(cache)
        1
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._neurons: OrderedDict[int, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._cleared = 0  # times

    def __len__(self) -> int:
        return len(self._neurons)

    def get(self, edits: Sequence[int], generate: Callable[[list[int]], Tensor]) -> Tensor:
        """Neurons (B, P) of B edits.

        Args:
            edits: indices of the edits.
            generate: gives neurons (M, P) for the M indices which are not cached.
        """
        with self._lock:
            cleared = self._cleared
            neurons = {edit: self._neurons[edit] for edit in edits if edit in self._neurons}
        missing = [edit for edit in dict.fromkeys(edits) if edit not in neurons]
        if missing:
            # Clones: a view would hold the whole batch in memory.
            new = [row.clone() for row in generate(missing)]
            neurons.update(zip(missing, new, strict=True))
        with self._lock:
            # What was generated before a `clear` is out of date.
            for edit in edits if cleared == self._cleared else ():
                self._neurons[edit] = neurons[edit]
                self._neurons.move_to_end(edit)
            while len(self._neurons) > self.size:
                self._neurons.popitem(last=False)
        return torch.stack([neurons[edit] for edit in edits])

    def clear(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._neurons.clear()
            self._cleared += 1
