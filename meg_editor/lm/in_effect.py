"""What is in effect during one call: it travels with the call, never on a shared object.

One ContextVar holds it. Threads and asyncio tasks each see their own, so that many of them can
ask one model at once, and an exception or a cancelled stream leaves nothing behind.
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
    """Within the block `value_of(owner)` is `value`, for this thread or task alone.

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
    """Within the block nothing is in effect for anyone: every model is its unedited base."""
    token = _IN_EFFECT.set(_NOTHING)
    try:
        yield
    finally:
        _IN_EFFECT.reset(token)


def value_of(owner: object, default: Any = None) -> Any:
    """What is in effect for `owner` in this thread or task."""
    return _IN_EFFECT.get().get(id(owner), default)
