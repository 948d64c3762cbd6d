"""Inputs and outputs of modules at chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from meg_editor.lm.devices import input_device
from meg_editor.lm.partial_forward import run_until
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import by_length


class Activations(NamedTuple):
    """Inputs (N, inputs) and outputs (N, outputs) of one module at N tokens, on its device."""

    inputs: Tensor
    outputs: Tensor


@torch.no_grad()
def activations_at(
    model: CausalLM,
    rows: Sequence[Sequence[int]],
    positions: Sequence[int],
    modules: Sequence[str],
    rows_at_once: int = 256,
) -> dict[str, Activations]:
    """Run N token sequences and read each named module at one token of each.

    The forward pass ends after the last of the modules.

    Args:
        rows: N lists of token ids.
        positions: N indices into them.
    """
    pairs_of: dict[str, dict[int, tuple[Tensor, Tensor]]] = {name: {} for name in modules}
    chunk: list[int] = []
    ends = torch.tensor([])

    def read(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entering = args[0] if args else next(iter(kwargs.values()))
            at = torch.arange(len(chunk)), ends
            pair = (_rows(tensor, len(chunk))[at] for tensor in (entering, first(output)))
            pairs_of[name].update(zip(chunk, zip(*pair, strict=True), strict=True))

        return hook

    places = {name: model.get_submodule(name) for name in modules}
    handles = [
        place.register_forward_hook(read(name), with_kwargs=True) for name, place in places.items()
    ]
    decoder = partial(model.get_decoder(), use_cache=False)
    try:
        for chunk in by_length([len(row) for row in rows], rows_at_once):
            ids = pad_sequence([torch.tensor(rows[i]) for i in chunk], batch_first=True)
            ends = torch.tensor([positions[i] for i in chunk])
            run_until(places.values(), partial(decoder, input_ids=ids.to(input_device(model))))
    finally:
        for handle in handles:
            handle.remove()
    order = range(len(rows))
    return {
        name: Activations(*(torch.stack([pairs[i][side] for i in order]) for side in (0, 1)))
        for name, pairs in pairs_of.items()
    }


def first(output: Any) -> Tensor:
    """The tensor of a module's output, which may be a tuple with more behind it."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _rows(tensor: Tensor, count: int) -> Tensor:
    """(B, T, D), also where a model's FFN is given (B*T, D), as OPT's is."""
    return tensor.reshape(count, -1, tensor.shape[-1])
