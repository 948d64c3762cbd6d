"""The cache folder: what depends on a model alone and is made once."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meg_editor.runtime.files import check_creatable

VARIABLE = "MEG_EDITOR_CACHE"
DIGITS = 24  # of a stage's key
STAGE_FILE = re.compile(rf".+-[0-9a-f]{{{DIGITS}}}\.safetensors")
# What is ours in the folder, by kind: the names of others' files are others.
_NAMES = {"models": re.compile(r".+-[0-9a-f]{16}"), "prepared": STAGE_FILE}


def cache_folder(kind: str = "") -> Path:
    """Folder of the cache, or of one kind in it; it need not exist.

    It is the environment's MEG_EDITOR_CACHE, else ~/.cache/meg_editor.

    Example:
        >>> cache_folder("models").name
        'models'

    Raises:
        ValueError: it begins with ~, and there is no such home directory.
    """
    given = os.environ.get(VARIABLE) or "~/.cache/meg_editor"
    try:
        root = Path(given).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{VARIABLE}: expected a folder, got {given!r}, a home directory that is not known; "
            "set it to a full path"
        ) from error
    return root / kind if kind else root


def writable_cache_folder(kind: str) -> Path:
    """`cache_folder`, made if it is missing.

    Raises:
        OSError: nothing can be written there.

    Example:
        >>> writable_cache_folder("models").is_dir()
        True
    """
    folder = cache_folder(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_creatable(folder / "entry")
    except OSError as error:
        raise not_kept(error) from error
    return folder


def not_kept(error: OSError) -> OSError:
    """An error of writing to the cache folder, with what to do."""
    problem = f"cannot write to the cache folder: {error}"
    return OSError(error.errno, f"{problem}; set {VARIABLE} to another folder, or free space")


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache.

    Attributes:
        kind: "models" or "prepared".
        path: its file or folder.
        bytes: it takes on the disk.
    """

    kind: str
    path: Path
    bytes: int


def cache_entries() -> Iterator[CacheEntry]:
    """Everything in the cache, by kind and name.

    Example:
        >>> all(entry.bytes >= 0 for entry in cache_entries())
        True
    """
    for kind, name in _NAMES.items():
        for path in sorted(cache_folder(kind).glob("*")):
            if name.fullmatch(path.name):
                files = path.rglob("*") if path.is_dir() else [path]
                size = sum(file.stat().st_size for file in files if file.is_file())
                yield CacheEntry(kind, path, size)


def clear_cache() -> int:
    """Remove every entry; returns the bytes that are free again.

    Only what `cache_entries` lists goes: the folder may hold files of others.
    """
    freed = 0
    for entry in cache_entries():
        freed += entry.bytes
        if entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)  # another process may clear it too
        else:
            entry.path.unlink(missing_ok=True)
    return freed
