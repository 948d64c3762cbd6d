"""Files written whole: a reader sees the former content or the new one, whatever is killed when."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 5.0  # seconds for a sweeper to end
PART = ".part"  # ends the name of what is being written
_ID = "[0-9a-f]" * 8


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """File which takes the place of `path` when the block ends, and is gone if it raises.

    It is on the disk before it is seen. Missing parents are created; a link stays and what it
    points to is replaced. What killed writers of `path` left behind is removed.

    Raises:
        OSError: it cannot be written, or `path` is a device, a pipe or a folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "scores.txt"
        >>> with replacing(path) as file:
        ...     _ = file.write(b"99.4")
        >>> path.read_text()
        '99.4'
    """
    path = resolved(path)
    check_regular(path, missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, glob.escape(path.name))
    with _created(path, Path.touch) as unfinished:
        try:
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    sync(path.parent)


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """New folder beside `path`, to be renamed within the block; what is left of it is removed.

    It is locked, so that nobody sweeps it. What killed writers of `path` left behind is removed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "edits"
        >>> with unfinished_folder(path) as new:
        ...     _ = new.rename(path)
        >>> [folder.name for folder in path.parent.iterdir()]
        ['edits']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, glob.escape(path.name))
    with _created(path, Path.mkdir) as new:
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _created(path: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """Something new beside `path`, locked; another one if it was swept before it was locked."""
    with ExitStack() as stack:
        while True:
            create(new := unfinished_name(path))
            with suppress(FileNotFoundError):
                stack.enter_context(holding(new, seconds=_PATIENCE))
                if new.exists():
                    break
        yield new


def unfinished_name(path: Path) -> Path:
    """A new hidden name beside `path` for what will take its place.

    Example:
        >>> unfinished_name(Path("runs/report.json")).name
        '.report.json....part'
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PART}")


def check_creatable(path: Path) -> None:
    """Check that something can be created beside `path`.

    Raises:
        OSError: it cannot.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> check_creatable(folder / "report.json")
        >>> list(folder.iterdir())
        []
    """
    probe = unfinished_name(path)  # swept, should a kill leave it
    probe.mkdir()
    with suppress(FileNotFoundError):  # another process has just swept it
        probe.rmdir()


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what killed writers left in `folder`; what a living one writes is locked and stays.

    Args:
        names: pattern of what they were writing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> unfinished_name(folder / "report.json").touch()
        >>> sweep(folder)
        >>> list(folder.iterdir())
        []
    """
    for path in folder.glob(f".{names}.{_ID}{PART}"):
        with suppress(OSError), holding(path) as free:
            if not free:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def holding(path: Path, *, shared: bool = False, seconds: float = 0.0) -> Iterator[bool | None]:
    """Hold the lock of an existing file or folder within the block, if it is free in time.

    Yields whether it is held; None where there are no locks. Locks bind those who use them, over
    processes and threads. What takes the place of `path` meanwhile is locked instead.

    Args:
        shared: beside others who share it; else alone.
        seconds: how long to wait for it.

    Raises:
        OSError: `path` cannot be opened.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with holding(folder) as first, holding(folder) as second:
        ...     print(first, second)
        True False
    """
    end = time.monotonic() + seconds
    while fcntl is not None:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        locked: bool | None = None
        try:
            locked = _lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, end)
            if locked and not os.path.samestat(os.fstat(descriptor), path.stat()):
                continue
            yield locked
            return
        finally:
            if locked:  # a process forked meanwhile has it too, which closing leaves locked
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
    yield None


def _lock(descriptor: int, kind: int, end: float) -> bool | None:
    """Whether an open file could be locked until `end`; None, without waiting, without locks."""
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.005)
        except OSError:  # such as a network file system
            return None


def resolved(path: str | Path) -> Path:
    """Absolute path without "~" and links.

    Raises:
        OSError: a loop of links, an unknown user behind "~", or a name no file can have.

    Example:
        >>> resolved("~nobody-of-this-name/edits")
        Traceback (most recent call last):
        ...
        OSError: ...
    """
    try:
        path = Path(path).expanduser()
        os.fsencode(path)
        return path.resolve()
    except (RuntimeError, ValueError) as error:  # pathlib's for "~nobody", loops and NUL
        raise OSError(errno.EINVAL, f"{str(path)!r} names no file: {error}") from error


def without_folder(text: str) -> str:
    """The last part of an absolute path, or of one that exists here; any other text as it is.

    A prompt template may begin with a slash too: no text with a brace is a path.

    Example:
        >>> [without_folder(text) for text in ("/data/zsre.json", "org/model", "/no_think {}")]
        ['zsre.json', 'org/model', '/no_think {}']
    """
    is_path = os.path.isabs(text) or ("/" in text and os.path.exists(text))
    return Path(text).name if is_path and "{" not in text else text


def check_regular(path: Path, *, missing_ok: bool = False) -> os.stat_result | None:
    """Check that a path is a file, so that opening it neither blocks nor never ends.

    Returns:
        Its stat, links followed; None if it is missing.

    Raises:
        FileNotFoundError: it is missing.
        IsADirectoryError: it is a folder.
        OSError: it is a device, pipe or socket; its `errno` is EINVAL.

    Example:
        >>> check_regular(Path("/dev/null"))
        Traceback (most recent call last):
        ...
        OSError: [Errno 22] expected a regular file, got a device: '/dev/null'
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if missing_ok:
            return None
        raise
    if not stat.S_ISREG(found.st_mode):
        code = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        problem = f"expected a regular file, got a {kind_of(found.st_mode)}"
        raise OSError(code, problem, str(path))
    return found


def kind_of(mode: int) -> str:
    """What a `st_mode` is, in a word.

    Example:
        >>> kind_of(Path(".").stat().st_mode)
        'folder'
    """
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "file" if stat.S_ISREG(mode) else "device"


def sync(folder: Path) -> None:
    """Have the disk hold the names in `folder`, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have the disk hold every file below `folder`, readable for all users the umask lets.

    Some libraries create files which their owner alone can read.
    """
    probe = unfinished_name(folder / "mode")
    probe.touch(0o666)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            sync(path)
            continue
        with path.open("rb") as file:
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
            os.fsync(file.fileno())
    sync(folder)
