"""One change of the edits at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from meg_editor.lm.in_effect import in_effect, value_of


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
        self._blocks: list[object] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Block which nobody else is in; waits for another thread.

        Raises:
            RuntimeError: another task of this thread is in it, and could not end while it is waited
                for.
        """
        with self._lock:
            if self._blocks and value_of(self) is not self._blocks[-1]:
                raise RuntimeError(
                    "another task of this thread is amid a transaction of these edits: expected it "
                    "to end first; await that task, or make changes in threads "
                    "(asyncio.to_thread), which wait"
                )
            block = object()
            self._blocks.append(block)
            try:
                with in_effect(self, block):
                    yield
            finally:
                self._blocks.remove(block)
