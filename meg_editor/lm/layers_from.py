"""Run only the decoder blocks a neuron can change: those below it always give the same."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.lm.ffn import decoder_blocks
from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.partial_forward import capture_input
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import Batch, Example, by_length

_INSTALLING = threading.Lock()


class LayersFrom:
    """The blocks of a frozen decoder from `layer` on.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
        >>> layers = LayersFrom(model, 2)
        >>> stream = layers.residual_stream(ids)  # once
        >>> with layers.injected(stream):  # as often as you like
        ...     logits = model(input_ids=ids).logits  # without the blocks below
        >>> torch.equal(logits, model(input_ids=ids).logits)
        True
    """

    def __init__(self, model: CausalLM, layer: int) -> None:
        self.model, self.layer = model, layer
        self.blocks = list(decoder_blocks(model)[1])
        self._rest: tuple[Any, ...] | None = None  # what blocks return beside the stream

    @torch.no_grad()
    def residual_stream(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """(B, T) input ids and other inputs of the decoder -> (B, T, D), what enters `layer`."""

        def note(_: nn.Module, args: Any, output: Any) -> None:
            if value_of(self):
                self._rest = tuple(output[1:]) if isinstance(output, tuple) else None

        below = self.blocks[: self.layer]
        handles = [block.register_forward_hook(note) for block in below[-1:]]
        inputs = {"use_cache": False, **inputs, "input_ids": input_ids}
        try:
            decoder = partial(self.model.get_decoder(), **inputs)
            with in_effect(self, True):
                return capture_input(self.blocks[self.layer], decoder).detach()
        finally:
            for handle in handles:
                handle.remove()

    def residual_streams(self, examples: Sequence[Example], rows_at_once: int) -> list[Tensor]:
        """What enters `layer` with each of N examples, (T, D) each, without padding."""
        streams: dict[int, Tensor] = {}
        for chunk in by_length([len(example) for example in examples], rows_at_once):
            batch = Batch.of([examples[row] for row in chunk], self.model.device)
            for row, stream in zip(chunk, self.residual_stream(batch.ids), strict=True):
                streams[row] = stream[: len(examples[row])]
        return [streams[row] for row in range(len(examples))]

    @contextmanager
    def injected(self, stream: Tensor) -> Iterator[None]:
        """Within the block, forward passes take `stream` (B, T, D) for what enters block `layer`.

        Only those of this thread or task: others, who answer with the model meanwhile, run all
        blocks. The input ids must have the shape (B, T).
        """
        blocks = self.blocks[: self.layer + 1]
        skipped = {id(block) for block in blocks[:-1]}
        injection = _Injection(skipped, id(blocks[-1]), stream, self._rest)
        _install(blocks)
        try:
            with in_effect(_Injection, injection):
                yield
        finally:
            _uninstall(blocks)


@dataclass(frozen=True)
class _Injection:
    """What a thread injects.

    Attributes:
        skipped: ids of the blocks that are passed over.
        entered: id of the block which the stream enters.
        rest: what blocks return beside the stream.
    """

    skipped: set[int]
    entered: int
    stream: Tensor
    rest: tuple[Any, ...] | None


class _Gate:
    """A block's forward which obeys the injection of the calling thread.

    Attributes:
        own: the forward which the block itself had as an attribute (accelerate sets one), or None.
        users: how many `injected` blocks need it.
    """

    def __init__(self, block: nn.Module) -> None:
        self.own: Callable[..., Any] | None = vars(block).get("forward")
        self.users = 0
        self._forward, self._id = block.forward, id(block)
        functools.update_wrapper(self, self._forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        injection: _Injection | None = value_of(_Injection)
        if injection is not None and self._id in injection.skipped:
            hidden = args[0] if args else kwargs["hidden_states"]
            return hidden if injection.rest is None else (hidden, *injection.rest)
        if injection is None or self._id != injection.entered:
            return self._forward(*args, **kwargs)
        if args:
            return self._forward(injection.stream, *args[1:], **kwargs)
        return self._forward(**{**kwargs, "hidden_states": injection.stream})


def _install(blocks: Sequence[nn.Module]) -> None:
    with _INSTALLING:
        for block in blocks:
            gate = vars(block).get("forward")
            if not isinstance(gate, _Gate):
                gate = _Gate(block)
                block.forward = gate
            gate.users += 1


def _uninstall(blocks: Sequence[nn.Module]) -> None:
    with _INSTALLING:
        for block in blocks:
            gate = vars(block).get("forward")
            if isinstance(gate, _Gate):
                gate.users -= 1
                if gate.users == 0 and gate.own is None:
                    vars(block).pop("forward", None)
                elif gate.users == 0:
                    block.forward = gate.own  # type: ignore[assignment]
