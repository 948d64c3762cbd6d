"""Partial forward passes: capture what enters a module, or exit early.

The hooks act for the calling thread or task alone: others run through meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from meg_editor.lm.in_effect import in_effect, value_of


class _Exit(Exception):
    """Nothing after this is needed."""


def capture_input(module: nn.Module, forward: Callable[[], Any]) -> Tensor:
    """What enters `module` while `forward` runs, which gets no further.

    Raises:
        ValueError: `forward` does not reach `module`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> capture_input(model[1], lambda: model(torch.tensor([-1.0]))).tolist()
        [-1.0]
    """
    captured: list[Tensor] = []

    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not value_of(captured):
            return
        first = next(iter((*args, *kwargs.values())))
        captured.append(first if args else kwargs.get("hidden_states", first))
        raise _Exit

    # Before any NeuronHook on the module: this pass is not one it should take part in.
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
    """Run `forward` until each of `modules` has run, with the hooks they had before."""
    left = set(modules)

    def leave(module: nn.Module, *_: Any) -> None:
        if value_of(left):
            left.discard(module)
            if not left:
                raise _Exit

    handles = [module.register_forward_hook(leave) for module in left]
    try:
        with in_effect(left, True), suppress(_Exit):
            forward()
    finally:
        for handle in handles:
            handle.remove()
