"""A forward pass which ends where its rest is not needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class _Stop(Exception):
    """Carries what entered the module out of the pass."""

    def __init__(self, entering: Tensor) -> None:
        self.entering = entering


def input_of(module: nn.Module, forward: Callable[[], Any]) -> Tensor:
    """What enters `module` while `forward` runs, which gets no further.

    Raises:
        ValueError: `forward` does not come by `module`.
    """

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(iter((*args, *kwargs.values())))
        raise _Stop(first if args else kwargs.get("hidden_states", first))

    # Before any NeuronHook on the module: this pass is not one it should take part in.
    handle = module.register_forward_pre_hook(stop, prepend=True, with_kwargs=True)
    try:
        forward()
    except _Stop as stopped:
        return stopped.entering
    finally:
        handle.remove()
    raise ValueError(f"the forward pass does not come by {type(module).__name__}")
