"""One change of the edits at a time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any


class ChangeLock:
    """A lock which a thread, or an asyncio task, may take again while it has it.

    All tasks of a thread would pass an `RLock`: what one of them changes while another is amid a
    transaction would be rolled back with it.

    Example:
        >>> lock = ChangeLock()
        >>> with lock, lock:
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tasks: list[asyncio.Task[Any] | None] = []

    def __enter__(self) -> None:
        """Waits for another thread.

        Raises:
            RuntimeError: another task of this thread has it, and could not end while it is waited
                for.
        """
        self._lock.acquire()
        task = _current_task()
        if self._tasks and self._tasks[-1] is not task:
            self._lock.release()
            raise RuntimeError(
                "another asyncio task is amid a transaction of these edits: expected it to end "
                "first; await that task, or make changes in threads (asyncio.to_thread), which wait"
            )
        self._tasks.append(task)

    def __exit__(self, *_: object) -> None:
        self._tasks.pop()
        self._lock.release()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None
