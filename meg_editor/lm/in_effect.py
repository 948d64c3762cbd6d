"""State of a call (neurons, routing decision, injection) in a ContextVar, not on shared objects.

Every thread and asyncio task has its own value, so many of them can use one model at once, and an
exception or a cancelled stream leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[int, Any] = MappingProxyType({})
_IN_EFFECT: ContextVar[Mapping[int, Any]] = ContextVar("meg_editor_in_effect", default=_NOTHING)


@contextmanager
def in_effect(owner: object, value: Any) -> Iterator[None]:
    """Context in which `value_of(owner)` is `value`, in this thread or asyncio task only.

    Blocks nest; leaving one restores what was in effect before it.

    Example:
        >>> owner = object()
        >>> with in_effect(owner, 3):
        ...     value_of(owner)
        3
        >>> value_of(owner) is None
        True
    """
    token = _IN_EFFECT.set({**_IN_EFFECT.get(), id(owner): value})
    try:
        yield
    finally:
        _IN_EFFECT.reset(token)


@contextmanager
def nothing_in_effect() -> Iterator[None]:
    """Context in which no value is in effect: every model is its unedited base.

    Example:
        >>> owner = object()
        >>> with in_effect(owner, 3), nothing_in_effect():
        ...     value_of(owner) is None
        True
    """
    token = _IN_EFFECT.set(_NOTHING)
    try:
        yield
    finally:
        _IN_EFFECT.reset(token)


def value_of(owner: object, default: Any = None) -> Any:
    """Value in effect for `owner` in this thread or asyncio task, else `default`."""
    return _IN_EFFECT.get().get(id(owner), default)
