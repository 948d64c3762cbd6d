"""Hooks on a shared model which act for the call that asks for them, and for no other."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from meg_editor.lm.in_effect import in_effect, value_of

# (call, args, kwargs) before a module, (call, args, kwargs, output) after it; as PyTorch's hooks,
# they return None or what is to be used instead.
CallHook = Callable[..., Any]


class CallHooks:
    """Hooks registered once, which act within `active` in that thread or asyncio task alone.

    They come off the model when this object is garbage-collected. A copy of the model alone has
    none of them; copied together with this object (a deep copy of its owner), it has its own.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> hooks = CallHooks()
        >>> hooks.after(layer, lambda call, args, kwargs, output: output * call)
        >>> x = torch.ones(1, 2)
        >>> with hooks.active(0.0):
        ...     inside = layer(x)
        >>> inside.abs().sum().item(), bool(layer(x).any())
        (0.0, True)
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles)

    def before(self, module: nn.Module, function: CallHook) -> None:
        """Register `function` before `module`; it must not refer to the owner of this object."""
        hook = _Hook(self, function)
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, function: CallHook) -> None:
        """Register `function` after `module`; it must not refer to the owner of this object."""
        self._handles.append(module.register_forward_hook(_Hook(self, function), with_kwargs=True))

    def active(self, call: Any) -> AbstractContextManager[None]:
        """Within the block the functions are called with `call`, which is not None."""
        return in_effect(self, call)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallHooks:
        other = memo[id(self)] = CallHooks()
        other._handles += copy.deepcopy(self._handles, memo)
        return other


class _Hook:
    """Calls `function` where a call of the hooks' owner is in effect."""

    def __init__(self, hooks: CallHooks, function: CallHook) -> None:
        self._hooks, self._function = weakref.ref(hooks), function

    # Not traced by torch.compile, which would bake in the call it traces.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        hooks = self._hooks()
        call = None if hooks is None else value_of(hooks)
        return None if call is None else self._function(call, *arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        # The copied hooks live on if their owner is copied too. Otherwise they are collected at
        # the end of the copy, and take themselves off the copied model.
        hooks = self._hooks()
        owner = CallHooks() if hooks is None else copy.deepcopy(hooks, memo)
        return _Hook(owner, self._function)


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()
