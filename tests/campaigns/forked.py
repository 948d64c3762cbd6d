"""One attempt of a campaign in a process of its own, with bounds of time and memory."""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

RAISED = 70  # exit status of an attempt which raised something
WALL = 60.0  # seconds, for what waits without computing; others may use the machine too
CPU = 5.0  # seconds
MEMORY = 2**30  # bytes more than the process had before


@dataclass
class Outcome:
    """How an attempt ended.

    Attributes:
        status: its exit status; negative: the signal that ended it; None: still there after WALL.
        text: its standard output and error.
        seconds: of computing.
        memory: highest number of bytes, above those at its start.
    """

    status: int | None
    text: str
    seconds: float
    memory: int

    @property
    def last(self) -> str:
        """The last line it printed."""
        return next(reversed(self.text.strip().split("\n")), "")

    @property
    def excess(self) -> str:
        """What it took too much of; empty if nothing."""
        if self.status is None:
            return f"still there after {WALL:.0f} s"
        if self.seconds > CPU:
            return f"computed for {self.seconds:.1f} s"
        return f"took {self.memory >> 20} MiB" if self.memory > MEMORY else ""


@dataclass
class Count:
    """Attempts and failures of a campaign."""

    name: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def note(self, what: str, problem: str) -> None:
        """Count an attempt; print it if there is a problem."""
        self.tried += 1
        if problem:
            line = " ".join(f"{what}: {problem}".split())
            self.failures.append(line)
            print(f"  {line[:600]}", flush=True)

    def summary(self, more: str = "") -> int:
        """Print the summary line; the exit status."""
        extra = f" ({more})" if more else ""
        print(f"{self.name} tried={self.tried} failed={len(self.failures)}{extra}", flush=True)
        return int(bool(self.failures))


def forked(work: Callable[[], Any], log: Path) -> Outcome:
    """Run `work` in a forked process, whose exit status is the number it returns, or 0."""
    before = _idle(log) if work is not _nothing else 0
    pid = start(work, log)
    descriptor = os.pidfd_open(pid)
    try:
        ended = bool(select.select([descriptor], [], [], WALL)[0])
    finally:
        os.close(descriptor)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    text = log.read_text("utf-8", errors="replace")
    code = os.waitstatus_to_exitcode(status) if ended else None
    seconds = usage.ru_utime + usage.ru_stime
    return Outcome(code, text, seconds, (usage.ru_maxrss << 10) - before)


def start(work: Callable[[], Any], log: Path) -> int:
    """Fork a process which runs `work`, prints to `log`, and ends; its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status: Any = RAISED
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        resource.setrlimit(resource.RLIMIT_AS, (_virtual() + 8 * MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(8 * CPU),) * 2)
        status = work() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


@cache
def _idle(log: Path) -> int:
    """Bytes of a forked process which does nothing."""
    return forked(_nothing, log).memory


def _nothing() -> None:
    pass


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def prepare(*modules: str) -> None:
    """One thread, no messages of transformers, no network; the modules which attempts will use."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    import transformers.utils.logging as messages

    for name in modules:
        import_module(f"meg_editor.{name}")

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    messages.set_verbosity_error()  # type: ignore[no-untyped-call]
    messages.disable_progress_bar()  # type: ignore[no-untyped-call]


def share() -> None:
    """Leave the memory of all objects so far alone, which forked processes share."""
    gc.collect()
    gc.freeze()
