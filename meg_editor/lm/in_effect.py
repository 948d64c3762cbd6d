"""What is in effect during one call: it travels with the call, never on a shared object.

One ContextVar holds it. Threads and asyncio tasks each see their own, so that many of them can
ask one model at once. A block which is left, in whatever order or thread (a generator that is
closed elsewhere, an exception, a cancelled stream), is in effect nowhere any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class _Entry:
    """A block that was entered; `parent` is the one around it."""

    __slots__ = ("entered", "owner", "parent", "value")

    def __init__(self, owner: int | None, value: Any, parent: _Entry | None) -> None:
        self.owner, self.value, self.parent = owner, value, parent
        self.entered = True


_INNERMOST: ContextVar[_Entry | None] = ContextVar("meg_editor_in_effect", default=None)


@contextmanager
def in_effect(owner: object, value: Any) -> Iterator[None]:
    """Within the block `value_of(owner)` is `value`, for this thread or task alone.

    Blocks nest; leaving one restores what was in effect before it. Code that runs in the same
    thread while a generator is suspended inside the block is within the block too; a thread which
    is started inside it is not.

    Example:
        >>> owner = object()
        >>> with in_effect(owner, 3):
        ...     value_of(owner)
        3
        >>> value_of(owner) is None
        True
    """
    yield from _block(id(owner), value)


@contextmanager
def nothing_in_effect() -> Iterator[None]:
    """Within the block nothing is in effect for anyone: every model is its unedited base."""
    yield from _block(None, None)


def value_of(owner: object) -> Any:
    """What is in effect for `owner` in this thread or task; None if nothing is."""
    entry = _INNERMOST.get()
    while entry is not None:
        if entry.entered and entry.owner is None:
            return None
        if entry.entered and entry.owner == id(owner):
            return entry.value
        entry = entry.parent
    return None


def _block(owner: int | None, value: Any) -> Iterator[None]:
    # Blocks that were left in another thread end here: else every request would add one.
    entry = _Entry(owner, value, _innermost())
    _INNERMOST.set(entry)
    try:
        yield
    finally:
        # Not a reset to what was before: blocks of generators are not left in their order.
        entry.entered, entry.value = False, None
        _INNERMOST.set(_innermost())


def _innermost() -> _Entry | None:
    """The innermost block of this thread or task that was not left yet."""
    entry = _INNERMOST.get()
    while entry is not None and not entry.entered:
        entry = entry.parent
    return entry
