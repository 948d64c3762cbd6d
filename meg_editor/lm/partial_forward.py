"""A forward pass which ends where its rest is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn


class _Stop(Exception):
    """Nothing after this is needed."""


def capture_input(module: nn.Module, forward: Callable[[], Any]) -> Tensor:
    """What enters `module` while `forward` runs, which gets no further.

    Raises:
        ValueError: `forward` does not come by `module`.
    """
    entering: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(iter((*args, *kwargs.values())))
        entering.append(first if args else kwargs.get("hidden_states", first))
        raise _Stop

    # Before any NeuronHook on the module: this pass is not one it should take part in.
    handle = module.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    try:
        with suppress(_Stop):
            forward()
    finally:
        handle.remove()
    if not entering:
        raise ValueError(f"the forward pass does not come by {type(module).__name__}")
    return entering[0]


def run_until(modules: Iterable[nn.Module], forward: Callable[[], Any]) -> None:
    """Run `forward` until each of `modules` has run, with the hooks they had before."""
    left = set(modules)

    def leave(module: nn.Module, *_: Any) -> None:
        left.discard(module)
        if not left:
            raise _Stop

    handles = [module.register_forward_hook(leave) for module in left]
    try:
        with suppress(_Stop):
            forward()
    finally:
        for handle in handles:
            handle.remove()
