"""Partial forward passes: capture the input of a module, exit early.

The hooks act on calls of this thread or asyncio task only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.weak_hook import WeakHook, hook_weakly


class _Exit(Exception):
    """Ends a forward pass early."""


class InputCapture:
    """A hook which captures the input of `module`; without captures it does nothing.

    While this object lives, `capture_input` uses its hook instead of registering one per call:
    a model which is asked by some threads can be copied and pickled by others. The hook comes off
    when this object is garbage-collected.

    Args:
        shared: whether `capture_input` finds it.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> capture = InputCapture(model[1])
        >>> capture.of(lambda: model(torch.tensor([-1.0]))).tolist()
        [-1.0]
        >>> capture_input(model[1], lambda: model(torch.tensor([-2.0]))).tolist()
        [-2.0]
    """

    def __init__(self, module: nn.Module, shared: bool = True) -> None:
        self.shared = shared
        self._name = type(module).__name__
        # Before any NeuronHook on the module, which must not see a pass that ends here.
        register = module.register_forward_pre_hook
        self.remove = hook_weakly(self, "_capture", register, prepend=True, with_kwargs=True)

    def of(self, forward: Callable[[], Any]) -> Tensor:
        """Input of the module in the forward pass `forward`; see `capture_input`."""
        captured: list[Tensor] = []
        with in_effect(self, captured), suppress(_Exit):
            forward()
        if not captured:
            raise ValueError(f"the forward pass does not reach {self._name}")
        return captured[0]

    # Without kwargs: where another thread meets the hook while it is taken off.
    def _capture(self, _: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        captured: list[Tensor] | None = value_of(self)
        if captured is not None:
            first = next(iter((*args, *kwargs.values())))
            captured.append(first if args else kwargs.get("hidden_states", first))
            raise _Exit


def capture_input(module: nn.Module, forward: Callable[[], Any]) -> Tensor:
    """Input of `module` in the forward pass `forward`, which ends there.

    Args:
        module: its first positional argument is captured, else `hidden_states`.
        forward: runs the model.

    Raises:
        ValueError: `forward` does not reach `module`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> capture_input(model[1], lambda: model(torch.tensor([-1.0]))).tolist()
        [-1.0]
    """
    for hook in tuple(module._forward_pre_hooks.values()):
        owner = hook.owner if isinstance(hook, WeakHook) else None
        if isinstance(owner, InputCapture) and owner.shared:
            return owner.of(forward)
    capture = InputCapture(module, shared=False)
    try:
        return capture.of(forward)
    finally:
        capture.remove()


def run_until(modules: Iterable[nn.Module], forward: Callable[[], Any]) -> None:
    """Run `forward`, ending once each of `modules` has run and their earlier hooks with them.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> outputs = []
        >>> _ = model[0].register_forward_hook(lambda m, x, y: outputs.append(y.tolist()))
        >>> run_until([model[0]], lambda: model(torch.ones(1)))
        >>> outputs
        [[1.0]]
    """
    pending = _Pending(modules)
    handles = [
        module.register_forward_hook(WeakHook(pending, "discard")) for module in pending.modules
    ]
    try:
        with in_effect(pending, True), suppress(_Exit):
            forward()
    finally:
        for handle in handles:
            handle.remove()


class _Pending:
    """Modules which have to run before a forward pass ends."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = set(modules)

    def discard(self, module: nn.Module, *_: Any) -> None:
        if value_of(self):
            self.modules.discard(module)
            if not self.modules:
                raise _Exit
