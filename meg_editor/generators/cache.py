"""The neurons of the edits asked for lately, so that they need not be generated again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class NeuronCache:
    """Keeps the neurons (P,) of the `size` edits used last; they stay on their device.

    Valid where a neuron depends on the edit alone (`generator_anchored`), and as long as the
    generator is not trained further; `clear` it then.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._neurons: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._neurons)

    def get(self, edits: Sequence[int], generate: Callable[[list[int]], Tensor]) -> Tensor:
        """Neurons (B, P) of B edits; `generate` gives those (M, P) of the M which are not here."""
        missing = [edit for edit in dict.fromkeys(edits) if edit not in self._neurons]
        if missing:
            # Clones: a row of a batch would keep the whole batch in memory.
            new = [row.clone() for row in generate(missing)]
            self._neurons.update(zip(missing, new, strict=True))
        found = torch.stack([self._neurons[edit] for edit in edits])
        for edit in edits:
            self._neurons.move_to_end(edit)
        while len(self._neurons) > self.size:
            self._neurons.popitem(last=False)
        return found

    def clear(self) -> None:
        """Forget all of them."""
        self._neurons.clear()
