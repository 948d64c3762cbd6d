"""One change of the edits at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from meg_editor.lm.in_effect import in_effect, value_of


@dataclass(frozen=True, eq=False)
class _Block:
    """A block which is under way, and the thread that has the lock for it."""

    thread: int


class ChangeLock:
    """A lock which whoever has it may take again: this thread, or tasks it has begun meanwhile.

    All tasks of a thread would pass an `RLock`: what one of them changes while another is amid a
    transaction would be rolled back with it.

    Example:
        >>> lock = ChangeLock()
        >>> with lock.taken(), lock.taken():
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._blocks: list[_Block] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Block which nobody else is in; waits for another thread.

        Raises:
            RuntimeError: another task of this thread is in it, and could not end while it is waited
                for; or this thread was begun inside it (`asyncio.to_thread`), and may be waited for
                there.
        """
        inside: _Block | None = value_of(self)
        if inside is not None and inside.thread != threading.get_ident():
            raise RuntimeError(
                "this thread was begun inside a transaction of these edits, which may wait for it: "
                "expected a change from the block itself; call it there, or give the whole "
                "transaction to the thread (asyncio.to_thread)"
            )
        with self._lock:
            if self._blocks and inside is not self._blocks[-1]:
                raise RuntimeError(
                    "another task of this thread is amid a transaction of these edits: expected it "
                    "to end first; await that task, or make changes in threads that are begun "
                    "outside of it (asyncio.to_thread), which wait"
                )
            block = _Block(threading.get_ident())
            self._blocks.append(block)
            try:
                with in_effect(self, block):
                    yield
            finally:
                self._blocks.remove(block)
