"""Reading files of the user: bounded, never blocking, with messages of bounded length."""

from __future__ import annotations

import errno
import reprlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from meg_editor.runtime.files import check_regular

_NAMES = 8  # in a message


class _ShortRepr(reprlib.Repr):
    """Bounded in depth and width, so that aliases and deep nesting are never expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 4
        self.maxstring = self.maxother = 72

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print integers of more than 4300 digits."""
        if x.bit_length() > 1000:
            return f"<integer of about {round(x.bit_length() * 0.30103)} digits>"
        return super().repr_int(x, level)


_SHORT = _ShortRepr()


def short_repr(value: Any, limit: int = 80) -> str:
    """`repr(value)` in one line of at most `limit` characters; the middle or the end is cut.

    Example:
        >>> short_repr("Lima"), short_repr([[[[1]]]]), short_repr(10**5000)
        ("'Lima'", '[[[[...]]]]', '<integer of about 5000 digits>')
    """
    try:
        text = _SHORT.repr(value)
    except Exception:  # the repr of some other class
        text = f"<{type(value).__name__}>"
    if not text.isprintable():
        text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def type_and_repr(value: Any, limit: int = 80) -> str:
    """What came instead of what was expected, for errors.

    Example:
        >>> type_and_repr([1, 2])
        'list ([1, 2])'
    """
    return f"{type(value).__name__} ({short_repr(value, limit)})"


def short_names(names: Iterable[Any]) -> str:
    """The first names of a mapping for a message, each shortened.

    Example:
        >>> short_names({"prompt": 1, "target": 2}), short_names({})
        ("'prompt', 'target'", 'nothing')
    """
    first = [short_repr(name, 40) for name in islice(names, _NAMES + 1)]
    return ", ".join([*first[:_NAMES], *["..."] * (len(first) > _NAMES)]) or "nothing"


def shown_path(path: Path) -> str:
    """A path for a message: in one line, by its name alone if the whole is long.

    Example:
        >>> shown_path(Path("facts\\n.json"))
        'facts\\\\n.json'
    """
    text = str(path) if len(str(path)) <= 160 else path.name
    return text if text.isprintable() else repr(text)[1:-1]


def read_regular_file(path: Path, limit: int, shown: str) -> bytes:
    """Content of a regular file of at most `limit` bytes; nothing else is opened.

    Args:
        shown: what messages call it.

    Raises:
        FileNotFoundError, IsADirectoryError: no file at `path`.
        ValueError: a pipe, socket or device, which could block or never end; or too large.

    Example:
        >>> read_regular_file(Path("/dev/zero"), 100, "/dev/zero")
        Traceback (most recent call last):
        ...
        ValueError: /dev/zero: expected a regular file, got a device; save its content to a file
        first
    """
    try:
        found = check_regular(path)
    except OSError as error:
        problem = f"{shown}: {error.strerror}"
        if error.errno != errno.EINVAL:
            raise type(error)(problem) from error
        raise ValueError(f"{problem}; save its content to a file first") from error
    if found is not None and found.st_size > limit:
        raise ValueError(f"{shown}: expected at most {limit:,} bytes, got {found.st_size:,}")
    return path.read_bytes()
