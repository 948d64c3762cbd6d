"""Partial forward passes: capture the input of a module, exit early.

The hooks act on calls of this thread or asyncio task only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from meg_editor.lm.in_effect import in_effect, value_of


class _Exit(Exception):
    """Ends a forward pass early."""


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
    captured: list[Tensor] = []

    # Without kwargs: where another thread meets the hook while it is taken off.
    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        if not value_of(captured):
            return
        first = next(iter((*args, *kwargs.values())))
        captured.append(first if args else kwargs.get("hidden_states", first))
        raise _Exit

    # Before any NeuronHook on the module, which must not see this pass.
    handle = module.register_forward_pre_hook(capture, prepend=True, with_kwargs=True)
    try:
        with in_effect(captured, True), suppress(_Exit):
            forward()
    finally:
        handle.remove()
    if not captured:
        raise ValueError(f"the forward pass does not reach {type(module).__name__}")
    return captured[0]


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
    pending = set(modules)

    def exit_early(module: nn.Module, *_: Any) -> None:
        if value_of(pending):
            pending.discard(module)
            if not pending:
                raise _Exit

    handles = [module.register_forward_hook(exit_early) for module in pending]
    try:
        with in_effect(pending, True), suppress(_Exit):
            forward()
    finally:
        for handle in handles:
            handle.remove()
