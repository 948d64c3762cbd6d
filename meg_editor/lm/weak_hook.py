"""Hooks of PyTorch modules which copies and pickles of a model do not take along."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class WeakHook:
    """Hook which calls a method of a weakly referenced owner, and removes itself without one.

    A copy has no owner: what is in effect on a model does not reach its deep copies and pickles,
    even those made while another thread runs it.

    Args:
        owner: None for a hook which only removes itself.
        method: name of the method, called as PyTorch calls a hook.

    Example:
        >>> import copy
        >>> class Printer:
        ...     def show(self, module, args, output):
        ...         print(output.tolist())
        >>> printer, layer = Printer(), nn.Identity()
        >>> _ = layer.register_forward_hook(WeakHook(printer, "show"))
        >>> _ = layer(torch.ones(1)), copy.deepcopy(layer)(torch.ones(1))
        [1.0]
    """

    def __init__(self, owner: object | None, method: str) -> None:
        self._owner: Callable[[], Any] = (lambda: None) if owner is None else weakref.ref(owner)
        self._method = method

    @property
    def owner(self) -> Any:
        """The owner; None if it was garbage-collected, and in a copy."""
        return self._owner()

    def __reduce__(self) -> tuple[Any, ...]:
        return WeakHook, (None, self._method)

    # Not traced by torch.compile, which would bake in what is in effect for the call it traces.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        owner = self._owner()
        if owner is None:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                # Lists and pops: several threads may be the first to run a copy.
                for key in [key for key, hook in list(hooks.items()) if hook is self]:
                    hooks.pop(key, None)
            return None
        return getattr(owner, self._method)(module, *arguments)


def hook_weakly(
    owner: object, method: str, register: Callable[..., Any], **options: Any
) -> Callable[[], Any]:
    """Register a `WeakHook`, which comes off with its owner; returns what takes it off before.

    Args:
        register: such as `module.register_forward_hook`, called with `options`.
    """
    return weakref.finalize(owner, register(WeakHook(owner, method), **options).remove)
