"""Read one version of a saved folder, whole, while others may save to it.

Where there are locks, a reader keeps others from moving files. Where there are none, it looks
again afterwards whether a file was replaced, or moved to its place, and if so reads once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from meg_editor.model.saved.manifest import (
    CONFIG,
    SavedModelError,
    check_name,
    read_config,
    reading,
)
from meg_editor.model.saved.publish import places, settle, whole_version
from meg_editor.model.saved.schema import parse_config
from meg_editor.runtime.files import holding

_ATTEMPTS = 12
_PATIENCE = 30.0  # seconds for a save to have its files in place

T = TypeVar("T")


def read_version(folder: Path, read: Callable[[Path, dict[str, Any]], T]) -> T:
    """What `read` returns for the version in force; called again if that changed meanwhile.

    Args:
        read: is given a folder with the files of the version, and its config.

    Raises:
        What `read` raises.
        SavedModelError: no config of saved edits, or the folder changed again and again.
    """
    settle(folder)
    for attempt in range(_ATTEMPTS):
        time.sleep(0.02 * attempt)
        with holding(folder, shared=True, seconds=_PATIENCE):
            with reading(folder / CONFIG):
                config = parse_config(read_config(folder))
                for name in config["files"]:
                    check_name(name)
            before = _stamps(folder, config["files"])
            with whole_version(folder, config["files"]) as view:
                try:
                    found = read(view, config)
                except Exception:
                    if _unchanged(folder, config, before):
                        raise
                    continue
            if _unchanged(folder, config, before):
                return found
    raise SavedModelError(
        f"{folder}: another process saved to it {_ATTEMPTS} times while it was read; load it again"
    )


def _unchanged(folder: Path, config: dict[str, Any], before: Any) -> bool:
    # The config last: who replaces it does so before any other file.
    return _stamps(folder, config["files"]) == before and read_config(folder) == config


def _stamps(folder: Path, names: Collection[str]) -> list[tuple[str, tuple[int, ...] | None]]:
    """What tells whether files were moved, replaced or written to: place, identity, size, time."""
    found: list[tuple[str, tuple[int, ...] | None]] = []
    for path in (folder / CONFIG, *places(folder, names).values()):
        try:
            s = path.stat()
        except OSError:
            found.append((str(path), None))
        else:
            found.append((str(path), (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns)))
    return found
