"""The input of a module in the last forward pass, kept for those who ask in the same call."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from meg_editor.lm.in_effect import in_effect, value_of
from meg_editor.lm.weak_hook import WeakHook


class LastInput:
    """A hook which keeps the input of `module`, in the calls where `kept` is in effect.

    The hook comes off when this object is garbage-collected.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
        >>> last = LastInput(model[1])
        >>> with last.kept():
        ...     _ = model(torch.tensor([-1.0]))
        ...     last.value.tolist()
        [-1.0]
        >>> last.value is None
        True
    """

    def __init__(self, module: nn.Module) -> None:
        handle = module.register_forward_pre_hook(WeakHook(self, "_keep"), with_kwargs=True)
        self.remove = weakref.finalize(self, handle.remove)

    def kept(self) -> AbstractContextManager[None]:
        """Context in which forward passes of this thread or asyncio task are kept."""
        return in_effect(self, [None])

    def paused(self) -> AbstractContextManager[None]:
        """Context, inside `kept`, in which they are not."""
        return in_effect(self, None)

    @property
    def value(self) -> Tensor | None:
        """Input of the module in the last pass; None before the first one, and outside `kept`."""
        holder: list[Tensor | None] | None = value_of(self)
        return None if holder is None else holder[0]

    def _keep(self, _: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        holder = value_of(self)
        if holder is not None:
            first = next(iter((*args, *(kwargs or {}).values())))
            holder[0] = first if args else (kwargs or {}).get("hidden_states", first)
