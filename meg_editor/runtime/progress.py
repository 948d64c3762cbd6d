"""Progress on standard error, with the time left: a bar on a terminal, else lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
_EVERY = 5.0  # seconds between two lines


@dataclass
class _Stage:
    """A stage of several loops; `last` is the time of its start or of its last line."""

    label: str
    last: float


_STAGE: ContextVar[_Stage | None] = ContextVar("meg_editor_stage", default=None)


class Progress(Protocol[Item]):
    """Type of a progress bar: iterate over it, or enter it and call `update`."""

    def __iter__(self) -> Iterator[Item]: ...

    def __enter__(self) -> Progress[Item]: ...

    def __exit__(self, *error: Any) -> Any: ...

    def update(self, n: int = 1) -> Any:
        """Advance by `n` items."""


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
    single = isinstance(items, Sized) and len(items) < 2  # a bar would only flicker
    if sys.stderr.isatty() and not single:
        return tqdm(items, desc=f"{label:<12}", unit=unit, leave=False)
    if int(os.environ.get("RANK", "0")) > 0:
        return ProgressLines(items, label, unit, write=lambda line: None)
    return ProgressLines(items, label, unit)


@contextmanager
def progress_stage(label: str, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Context in which loops share one timer, so that a stage of many short loops prints too.

    Lines begin with the stage: `calibration: answers 3/8 batches, 2 s left`.

    Example:
        >>> with progress_stage("calibration"):
        ...     for chunk in progress_bar(range(8), "answers", "batch"):
        ...         pass
    """
    token = _STAGE.set(_Stage(label, clock()))
    try:
        yield
    finally:
        _STAGE.reset(token)


class ProgressLines(Generic[Item]):
    """Progress as lines, such as `collection: 128/1024 facts, 12 s left`, every few seconds.

    Args:
        items: what to iterate over; the time left needs its length.
        label: the stage, such as "collection".
        unit: what is counted, in the singular.
        write: called with each line; default: print to standard error.
        clock: monotonic time in seconds.
        every: seconds from the start to the first line, and between lines.

    Example:
        >>> bar = ProgressLines(range(8), "collection", "fact", write=print, every=0)
        >>> bar.update(8)
        >>> bar.done
        8
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
        stage = _STAGE.get()
        self.label = f"{label}:"
        if stage and stage.label != label:
            self.label = f"{stage.label}: {label}"
        self.items, self.unit = items, unit
        self.total = len(items) if isinstance(items, Sized) else None
        self.done = 0
        self._write, self._clock, self._every = write or _to_stderr, clock, every
        self._start = clock()
        self._stage = stage or _Stage(label, self._start)  # a loop outside any stage

    def __iter__(self) -> Iterator[Item]:
        self._start = self._clock()
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
        """Advance by `n` items; prints a line if the last one is `every` seconds ago."""
        self.done += n
        now = self._clock()
        if now - self._stage.last >= self._every and self.done != self.total:
            self._stage.last = now
            self._write(self._line(now - self._start))

    def _line(self, elapsed: float) -> str:
        units = f"{self.unit}es" if self.unit.endswith("tch") else f"{self.unit}s"
        if self.total is None:
            return f"{self.label} {self.done} {units} in {duration(elapsed)}"
        left = elapsed / max(1, self.done) * (self.total - self.done)
        return f"{self.label} {self.done}/{self.total} {units}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds as text.

    Example:
        >>> duration(12), duration(200), duration(7500)
        ('12 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
