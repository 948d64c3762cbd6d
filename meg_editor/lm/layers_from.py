"""Run only the decoder blocks which a neuron can change: those below always give the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.lm.ffn import decoder_blocks
from meg_editor.lm.partial_forward import capture_input
from meg_editor.lm.tokens import Batch, Example, by_length


class LayersFrom:
    """The blocks of a frozen decoder from `layer` on.

    upper = LayersFrom(model, layer)
    stream = upper.stream(ids)          # once
    with upper.fed(stream):             # as often as you like
        model(input_ids=ids)            # the same output, without the blocks below
    """

    def __init__(self, model: Any, layer: int) -> None:
        self.model = model
        blocks = list(decoder_blocks(model)[1])
        self.below, self.first = blocks[:layer], blocks[layer]
        self._rest: tuple[Any, ...] | None = None  # what blocks return beside the stream

    @torch.no_grad()
    def stream(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """(B, T) input ids and other inputs of the decoder -> (B, T, D), what enters `layer`."""

        def note(_: nn.Module, args: Any, output: Any) -> None:
            self._rest = tuple(output[1:]) if isinstance(output, tuple) else None

        handles = [block.register_forward_hook(note) for block in self.below[-1:]]
        inputs = {"use_cache": False, **inputs, "input_ids": input_ids}
        try:
            return capture_input(self.first, partial(self.model.get_decoder(), **inputs)).detach()
        finally:
            for handle in handles:
                handle.remove()

    def streams(self, examples: Sequence[Example], rows_at_once: int) -> list[Tensor]:
        """What enters `layer` with each of N examples, (T, D) each, without padding."""
        found: dict[int, Tensor] = {}
        for chunk in by_length([len(example) for example in examples], rows_at_once):
            batch = Batch.of([examples[row] for row in chunk], self.model.device)
            for row, stream in zip(chunk, self.stream(batch.ids), strict=True):
                found[row] = stream[: len(examples[row])]
        return [found[row] for row in range(len(examples))]

    @contextmanager
    def fed(self, stream: Tensor) -> Iterator[None]:
        """Within the block, forward passes take `stream` (B, T, D) for what enters block `layer`.

        Their input ids must have the shape (B, T).
        """

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (stream, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": stream}

        def pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return hidden_states if self._rest is None else (hidden_states, *self._rest)

        before = [vars(block).get("forward") for block in self.below]  # accelerate sets one
        handle = self.first.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        try:
            for block in self.below:
                block.forward = pass_on
            yield
        finally:
            handle.remove()
            for block, own in zip(self.below, before, strict=True):
                if own is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = own
