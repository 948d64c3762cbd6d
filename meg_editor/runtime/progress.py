"""Progress with a time left on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
_EVERY = 5.0  # seconds between two lines


class Progress(Protocol[Item]):
    """What `progress_bar` returns: iterate over it, or enter it and call `update`."""

    def __iter__(self) -> Iterator[Item]: ...

    def __enter__(self) -> Progress[Item]: ...

    def __exit__(self, *error: Any) -> Any: ...

    def update(self, n: int = 1) -> Any:
        """`n` more items are done."""


def progress_bar(items: Iterable[Item], label: str, unit: str = "step") -> Progress[Item]:
    """Progress through `items`; prints to standard error.

    On a terminal a tqdm bar. Elsewhere (a log file, a notebook server, CI) a line every five
    seconds, so that loops shorter than that print nothing. Of several processes started by
    `accelerate launch` or `torchrun` the first prints lines.

    Args:
        label: the stage, such as "collection".
        unit: what is counted, in the singular.

    Example:
        >>> for step in progress_bar(range(3), "encoder"):
        ...     pass
        >>> with progress_bar(range(3), "collection", "fact") as bar:
        ...     bar.update(2)
    """
    if sys.stderr.isatty():
        return tqdm(items, desc=f"{label:<12}", unit=unit, leave=False)
    if int(os.environ.get("RANK", "0")) > 0:
        return ProgressLines(items, label, unit, write=lambda line: None)
    return ProgressLines(items, label, unit)


class ProgressLines(Generic[Item]):
    """Prints `collection: 128/1024 facts, 12 s left` every few seconds.

    Args:
        write: gets each line; default: standard error.
        clock: seconds, ascending.
        every: seconds from the start to the first line, and between lines.
    """

    def __init__(
        self,
        items: Iterable[Item],
        label: str,
        unit: str = "step",
        *,
        write: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = _EVERY,
    ) -> None:
        self.items, self.label, self.unit = items, label, unit
        self.total = len(items) if isinstance(items, Sized) else None
        self.done = 0
        self._write, self._clock, self._every = write or _to_stderr, clock, every
        self._start = self._last = clock()

    def __iter__(self) -> Iterator[Item]:
        self._start = self._last = self._clock()
        for item in self.items:
            yield item
            self.update()

    def __enter__(self) -> ProgressLines[Item]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is left to close; errors pass."""

    def update(self, n: int = 1) -> None:
        """`n` more items are done; prints a line if the last one is long ago."""
        self.done += n
        now = self._clock()
        if now - self._last >= self._every and self.done != self.total:
            self._last = now
            self._write(self._line(now - self._start))

    def _line(self, elapsed: float) -> str:
        units = f"{self.unit}es" if self.unit.endswith("ch") else f"{self.unit}s"
        if self.total is None:
            return f"{self.label}: {self.done} {units} in {duration(elapsed)}"
        left = elapsed / max(1, self.done) * (self.total - self.done)
        return f"{self.label}: {self.done}/{self.total} {units}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Readable length of time: "12 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
