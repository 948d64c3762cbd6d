"""One neuron per batch row, added to an FFN by hooks: `ffn(x) += act(k·x + b) · v` (eq. 10-12).

Shapes: B queries, T tokens, D hidden size, P neuron size. In a packed batch, whose one row has
the tokens of many queries, there is a neuron per token. No parameter of the model is changed:
without neurons in effect it is the unedited model. Neurons are in effect in one thread or asyncio
task only (`in_effect`), so many can use one model at once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.weak_hook import WeakHook


class EditIgnoredError(RuntimeError):
    """The model ran without the neuron hook, so the edit was not applied."""


@dataclass
class _Attached:
    """Neurons in effect for one call.

    Attributes:
        neurons: (B, P).
        owners: of T packed tokens, the row of each in `neurons`, -1 for none; None: a row each.
        ran: whether the hook added them to a forward pass.
    """

    neurons: Tensor
    owners: Tensor | None = None
    ran: bool = False


@dataclass(frozen=True)
class _Pass:
    """One forward pass between `read` and `write`: the FFN's input and the batch size."""

    batch: int | None
    input: Tensor | None = None


_NO_PASS: Mapping[int, _Pass] = MappingProxyType({})
_PASSES: ContextVar[Mapping[int, _Pass]] = ContextVar("meg_editor_passes", default=_NO_PASS)


class NeuronHook:
    """Forward hooks which add one neuron per batch row to the FFN, within `attached` only.

    A forward pass may have more rows than neurons (beams, num_return_sequences): each neuron then
    serves as many consecutive rows. Hooks are removed by `remove`, on leaving the `with`, and when
    this object is garbage-collected; deep copies of the model have none.

    Args:
        model: the LM; its parameters stay as they are.
        spec: layer and modules of the neuron.

    Raises:
        ValueError: the model has no such modules.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> from meg_editor.lm.neuron import NeuronSpec
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> spec = NeuronSpec.from_model(model, 2)
        >>> batch = tokenizer("The capital of France is", return_tensors="pt")
        >>> before = model(**batch).logits
        >>> with NeuronHook(model, spec) as hook, hook.attached(torch.ones(1, spec.size)):
        ...     changed = not torch.equal(model(**batch).logits, before)
        >>> changed, torch.equal(model(**batch).logits, before)
        (True, True)
    """

    def __init__(self, model: CausalLM, spec: NeuronSpec) -> None:
        self.spec = spec
        modules = dict(model.named_modules())
        if absent := {spec.read, spec.write} - set(modules):
            raise ValueError(
                f"{type(model).__name__} has no module {' or '.join(map(repr, absent))}"
            )
        self._activation = ACT2FN[spec.activation].requires_grad_(False)
        if (weight := next(modules[spec.write].parameters(), None)) is not None:
            self._activation.to(weight.device)
        self._activation_has_tensors = bool(self._activation.state_dict())  # xIELU has parameters
        block = modules[spec.read.rpartition(".")[0]]
        before = {"with_kwargs": True}
        self._handles = [
            block.register_forward_pre_hook(WeakHook(self, "_note_batch"), **before),
            modules[spec.read].register_forward_pre_hook(WeakHook(self, "_note_input"), **before),
            modules[spec.write].register_forward_hook(WeakHook(self, "_add_neurons")),
        ]
        weakref.finalize(self, _remove, self._handles)
        if is_compiled(model):
            torch.compiler.reset()  # earlier traces do not call the new hooks

    @contextmanager
    def attached(
        self, neurons: Tensor | None, owners: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Context in which forward passes of this thread or asyncio task use these neurons.

        Contexts nest; leaving one restores the neurons attached before. Gradients flow to
        `neurons`; with gradient checkpointing, run the backward pass inside the context.

        Args:
            neurons: (B, P), one per row; None attaches none.
            owners: for a packed batch of T tokens, the row in `neurons` of each token, -1 for
                none; None: each row of the batch has its neuron.

        Raises:
            ValueError: another shape or a removed hook; in the forward pass, a batch whose rows
                are not a multiple of B.
        """
        if not self._handles:
            raise ValueError("this NeuronHook was removed: it cannot attach neurons")
        attached = None
        if neurons is not None:
            shape = tuple(neurons.shape)
            if len(shape) != 2 or shape[0] == 0 or shape[1] != self.spec.size:
                raise ValueError(f"expected neurons of shape (B, {self.spec.size}), got {shape}")
            packed = None if owners is None else torch.tensor(owners, device=neurons.device)
            attached = _Attached(neurons, packed)
        try:
            with in_effect(self, attached):
                yield
        finally:
            _PASSES.set({key: v for key, v in _PASSES.get().items() if key != id(self)})

    def check(self) -> None:
        """Check, after a forward pass within `attached`, that the neurons were added.

        Raises:
            EditIgnoredError: neurons are attached, but the model ran without this hook.
        """
        attached: _Attached | None = value_of(self)
        if attached is not None and not attached.ran:
            raise EditIgnoredError(
                "the model ran without the edit: it was compiled and traced before it was edited. "
                "Call torch.compiler.reset() after editing, or compile the edited model"
            )

    def remove(self) -> None:
        """Remove the hooks from the model; a second call does nothing."""
        _remove(self._handles)

    def __enter__(self) -> NeuronHook:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _note_batch(self, _: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        # OPT flattens to (B*T, D) before its FFN: only the block still knows B.
        if value_of(self) is not None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            self._note(_Pass(None if hidden is None else hidden.shape[0]))

    def _note_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        if value_of(self) is not None:
            noted = _PASSES.get().get(id(self))
            x = args[0] if args else next(iter(kwargs.values()))
            self._note(_Pass(noted.batch if noted else None, x))

    def _add_neurons(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        attached: _Attached | None = value_of(self)
        noted = _PASSES.get().get(id(self))
        if attached is None or noted is None or noted.input is None:
            return None  # PyTorch keeps the output as it is
        # Frees the input. Under gradient checkpointing the block's own hook does not run again.
        self._note(_Pass(noted.batch))
        attached.ran = True
        first = output[0] if isinstance(output, tuple) else output
        if attached.owners is None:
            addition = self._addition(noted.input, noted.batch, attached.neurons)
        else:
            addition = self._packed_addition(noted.input, attached.neurons, attached.owners)
        first = first + addition.reshape(first.shape).to(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    def _note(self, forward_pass: _Pass) -> None:
        _PASSES.set({**_PASSES.get(), id(self): forward_pass})

    def _addition(self, x: Tensor, batch: int | None, neurons: Tensor) -> Tensor:
        """act(k·x + b) · v for FFN inputs x (B, T, D) or (B*T, D): (B, T, D), at least float32."""
        rows, size = neurons.shape[0], self.spec.hidden_size
        # The block's own batch counts only where the FFN's input is flattened: Gemma 3n's blocks
        # get several streams of each row.
        batch = x.shape[0] if batch is None or x.dim() > 2 else batch
        if x.shape[-1] != size:
            raise ValueError(f"expected FFN inputs (B, T, {size}), got {tuple(x.shape)}")
        if batch % rows:
            raise ValueError(
                f"{rows} neurons are attached: expected {rows} rows in the batch or a multiple of "
                f"that, got {batch} (of packed batches name the owner of each token)"
            )
        # Half precision would round the sum over D. A product and a sum, not a matmul: autocast
        # and TF32 leave them in float32, and one neuron per row is too little work to gain.
        x = x.reshape(batch, -1, size).to(torch.promote_types(x.dtype, torch.float32))
        return self._neurons_at(x, neurons.to(x).repeat_interleave(batch // rows, dim=0))

    def _packed_addition(self, x: Tensor, neurons: Tensor, owners: Tensor) -> Tensor:
        """The same for T packed tokens: (T, D), zeros where a token has no neuron."""
        x = x.reshape(-1, self.spec.hidden_size)
        if len(x) != len(owners):
            raise ValueError(f"expected {len(owners)} packed tokens, got {len(x)}")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        has = (owners >= 0).nonzero()[:, 0]
        added = self._neurons_at(x[has].unsqueeze(1), neurons.to(x)[owners[has]])[:, 0]
        return torch.zeros_like(x).index_copy(0, has, added)

    def _neurons_at(self, x: Tensor, neurons: Tensor) -> Tensor:
        """act(k·x + b) · v for x (B, T, D) and neurons (B, P)."""
        k, b, v = self.spec.split(neurons)
        key = (x * k.unsqueeze(1)).sum(dim=-1)  # (B, T)
        if self._activation_has_tensors:
            self._activation.to(key.device)
        value = self._activation(key if b is None else key + b.unsqueeze(1))
        addition: Tensor = value.unsqueeze(-1) * v.unsqueeze(1)
        return addition


@contextmanager
def eager(model: CausalLM) -> Iterator[None]:
    """Within the block a compiled model runs uncompiled, with hooks of which its traces know
    nothing. Other threads then run their models uncompiled too."""
    if not is_compiled(model):
        yield
        return
    with _EAGER.lock:
        _EAGER.users += 1
        if _EAGER.users == 1:
            _EAGER.stance = torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        with _EAGER.lock:
            _EAGER.users -= 1
            if _EAGER.users == 0:
                _EAGER.stance.__exit__(None, None, None)


class _Eager:
    """PyTorch's stance is one for the process: the first block sets it, the last takes it back."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.stance: Any = None


_EAGER = _Eager()


def is_compiled(model: CausalLM) -> bool:
    """Whether torch.compile was applied to a part of the model, in place."""
    return any(
        vars(module).get("_compiled_call_impl") is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        or "_orig_mod" in dict(module.named_children())
        for module in model.modules()
    )


def _remove(handles: list[Any]) -> None:
    while handles:
        handles.pop().remove()
