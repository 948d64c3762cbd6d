"""Token sequences of which only the ends change: the beginnings are prefilled once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from meg_editor.lm.devices import input_device
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.protocols import CausalLM


class SplitRows:
    """B sequences, each cut in two before its token `cut`.

    Under a causal mask the tails cannot change what is before the cut: keys and values of the heads
    are computed once, and each forward pass runs the tails alone, from block `layer` on.

    Attributes:
        ids: (B, S) the tails, padded on the right; a tail begins at position 0.
    """

    def __init__(
        self, model: CausalLM, layer: int, rows: Sequence[Sequence[int]], cuts: Sequence[int]
    ) -> None:
        self.model, self.upper = model, LayersFrom(model, layer)
        if not self.upper.injectable:
            raise ValueError(
                f"{type(model).__name__}: block {layer} needs more of the blocks below than the "
                "residual stream, which this method changes; edit with neurons (MeG) or FT"
            )
        device = input_device(model)
        tails = [torch.tensor(row[cut:]) for row, cut in zip(rows, cuts, strict=True)]
        self.ids = pad_sequence(tails, batch_first=True).to(device)
        before = torch.tensor(cuts, device=device).unsqueeze(1)
        width = max(cuts)
        heads = [[0] * (width - cut) + list(row[:cut]) for row, cut in zip(rows, cuts, strict=True)]
        place = torch.arange(width, device=device) - (width - before)
        self._mask = torch.cat([(place >= 0).long(), torch.ones_like(self.ids)], dim=1)
        self._positions = before + torch.arange(self.ids.shape[1], device=device)
        self._cache = DynamicCache()
        if width:
            with torch.no_grad():
                model.get_decoder()(
                    input_ids=torch.tensor(heads, device=device),
                    attention_mask=self._mask[:, :width],
                    position_ids=place.clamp(min=0),
                    past_key_values=self._cache,
                    use_cache=True,
                )
        self._stream = self.upper.residual_stream(**self._inputs())

    def hidden(self, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(B, S, D) the decoder's last hidden states at the tails.

        Args:
            change: of the residual stream (B, S, D) that enters block `layer`.
        """
        with self.upper.injected(change(self._stream) if change else self._stream):
            last: Tensor = self.model.get_decoder()(**self._inputs())[0]
        return last

    def select(self, keep: Tensor) -> None:
        """Keep only the rows marked in (B,) bool."""
        self.ids, self._mask = self.ids[keep], self._mask[keep]
        self._positions, self._stream = self._positions[keep], self._stream[keep]
        self._cache.batch_select_indices(keep)

    def _inputs(self) -> dict[str, Any]:
        cache = copy.copy(self._cache)  # a forward pass extends this copy by the tails
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        return {
            "input_ids": self.ids,
            "attention_mask": self._mask,
            "position_ids": self._positions,
            "past_key_values": cache,
            "use_cache": True,
        }
