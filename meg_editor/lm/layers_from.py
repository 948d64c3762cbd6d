"""Forward passes through the decoder blocks from the edited one on: those below are frozen.

In some families more than the residual stream leads from block to block: keys which later blocks
share (Gemma 4), several streams (Gemma 3n). There whole forward passes are run instead.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import decoder_blocks, decoder_of, last_hidden_states, text_config
from meg_editor.lm.in_effect import in_effect, nothing_in_effect, value_of
from meg_editor.lm.partial_forward import capture_input
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import Batch, Example, by_length, in_order
from meg_editor.lm.weak_hook import WeakHook

_INSTALLING = threading.Lock()
_TOLERANCE = 1e-2  # of the root mean square: kernels of a GPU may sum in another order
# Tokens of padding which cost as much as a forward pass more.
_PADDING = {"cpu": 128, "cuda": 2**14}
# Whether a model's blocks can be injected, by layer.
_INJECTABLE: MutableMapping[Any, dict[int, bool]] = weakref.WeakKeyDictionary()


class LayersFrom:
    """Decoder blocks from `layer` on: computes the residual stream once, injects it many times.

    Where the stream alone does not determine what the blocks compute (`injectable` is False),
    streams are empty, (B, T, 0), and within `injected` the whole model runs.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
        >>> layers = LayersFrom(model, 2)
        >>> stream = layers.residual_stream(ids)
        >>> with layers.injected(stream):  # the blocks below are skipped
        ...     logits = model(input_ids=ids).logits
        >>> torch.equal(logits, model(input_ids=ids).logits)
        True
    """

    def __init__(self, model: CausalLM, layer: int) -> None:
        self.model, self.layer = model, layer
        self.blocks = list(decoder_blocks(model)[1])
        self._rest: tuple[Any, ...] | None = None  # what blocks return besides the stream

    @property
    def injectable(self) -> bool:
        """Whether injected passes give what whole ones do; tried once per model and layer."""
        known = _INJECTABLE.setdefault(self.model, {})
        if self.layer not in known:
            known[self.layer] = self._injects()
        return known[self.layer]

    @torch.no_grad()
    def _injects(self) -> bool:
        pad = getattr(text_config(self.model), "pad_token_id", None)
        ids = torch.tensor([token for token in range(4, 13) if token != pad][:8])
        ids = ids.reshape(2, 4).to(input_device(self.model))
        hidden_states = partial(last_hidden_states, self.model, ids)
        with nothing_in_effect():
            expected = hidden_states().float()
            try:
                with self._injected(self._residual_stream(ids)):
                    actual = hidden_states().float()
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a block needs from one that was skipped
                return False
        limit = _TOLERANCE * float(expected.nan_to_num().square().mean().sqrt())
        return torch.allclose(actual, expected, rtol=_TOLERANCE, atol=limit, equal_nan=True)

    @torch.no_grad()
    def residual_stream(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Residual stream at the input of block `layer`, (B, T, D).

        Args:
            input_ids: (B, T).
            inputs: further inputs of the decoder, such as `attention_mask`.
        """
        if not self.injectable:
            return torch.zeros(*input_ids.shape, 0, device=input_ids.device)
        return self._residual_stream(input_ids, **inputs)

    def _residual_stream(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        below = self.blocks[: self.layer]
        save_rest = WeakHook(self, "_save_rest")
        handles = [block.register_forward_hook(save_rest) for block in below[-1:]]
        inputs = {"use_cache": False, **inputs, "input_ids": input_ids}
        try:
            decoder = partial(decoder_of(self.model), **inputs)
            with in_effect(self, True):
                return capture_input(self.blocks[self.layer], decoder).detach()
        finally:
            for handle in handles:
                handle.remove()

    def residual_streams(self, examples: Sequence[Example], rows_at_once: int) -> list[Tensor]:
        """Residual streams of N examples at the input of block `layer`: (T, D) each, unpadded.

        Args:
            rows_at_once: rows of a forward pass.
        """

        def streams(chunk: list[int]) -> list[Tensor]:
            batch = Batch.of([examples[row] for row in chunk], input_device(self.model))
            rows = zip(chunk, self.residual_stream(batch.ids), strict=True)
            return [stream[: len(examples[row])] for row, stream in rows]

        return in_order(self.passes(examples, rows_at_once), streams)

    def passes(self, examples: Sequence[Example], rows_at_once: int) -> Iterator[list[int]]:
        """Which of N examples share a forward pass: of like length, so that little is padding."""
        padding = _PADDING.get(input_device(self.model).type, _PADDING["cuda"])
        return by_length([len(example) for example in examples], rows_at_once, padding)

    def _save_rest(self, _: nn.Module, args: Any, output: Any) -> None:
        if value_of(self):
            self._rest = tuple(output[1:]) if isinstance(output, tuple) else None

    @contextmanager
    def injected(self, stream: Tensor) -> Iterator[None]:
        """Context in which forward passes start at block `layer` with `stream` (B, T, D).

        Only in this thread or asyncio task: calls from others still run all blocks. Input ids
        must have the shape (B, T).
        """
        if not self.injectable:
            yield
            return
        with self._injected(stream):
            yield

    @contextmanager
    def _injected(self, stream: Tensor) -> Iterator[None]:
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
    """The injection of one thread.

    Attributes:
        skipped: `id` of every block which is skipped.
        entered: `id` of the block which gets the stream as its input.
        stream: (B, T, D).
        rest: what blocks return besides the stream.
    """

    skipped: set[int]
    entered: int
    stream: Tensor
    rest: tuple[Any, ...] | None


class _InjectableForward:
    """Replacement of a block's `forward` which applies the injection of the calling thread.

    Attributes:
        original: the `forward` in the block's `__dict__` (accelerate sets one), or None.
        users: number of `injected` contexts which need it.
    """

    def __init__(self, block: nn.Module) -> None:
        self.original: Callable[..., Any] | None = vars(block).get("forward")
        self.users = 0
        self._forward, self._id = block.forward, id(block)
        functools.update_wrapper(self, self._forward)

    def __reduce__(self) -> tuple[Any, ...]:
        """In a copy or a pickle of the block: the `forward` which is replaced here."""
        return _same, (self._forward,)

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


def _same(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


def _install(blocks: Sequence[nn.Module]) -> None:
    with _INSTALLING:
        for block in blocks:
            forward = vars(block).get("forward")
            if not isinstance(forward, _InjectableForward):
                forward = _InjectableForward(block)
                block.forward = forward
            forward.users += 1


def _uninstall(blocks: Sequence[nn.Module]) -> None:
    with _INSTALLING:
        for block in blocks:
            forward = vars(block).get("forward")
            if isinstance(forward, _InjectableForward):
                forward.users -= 1
                if forward.users == 0 and forward.original is None:
                    vars(block).pop("forward", None)
                elif forward.users == 0:
                    block.forward = forward.original  # type: ignore[assignment]
