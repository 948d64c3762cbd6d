"""The cache folder: what depends on a model alone and is made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "MEG_EDITOR_CACHE"


def cache_folder(kind: str = "") -> Path:
    """Folder of the cache, or of one kind in it; it need not exist.

    It is the environment's MEG_EDITOR_CACHE, else ~/.cache/meg_editor.

    Example:
        >>> cache_folder("models").name
        'models'
    """
    given = os.environ.get(VARIABLE)
    root = Path(given).expanduser() if given else Path.home() / ".cache" / "meg_editor"
    return root / kind if kind else root


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
    for kind in sorted(path for path in cache_folder().glob("*") if path.is_dir()):
        for path in sorted(entry for entry in kind.iterdir() if entry.name[0] != "."):
            files = path.rglob("*") if path.is_dir() else [path]
            size = sum(file.stat().st_size for file in files if file.is_file())
            yield CacheEntry(kind.name, path, size)


def clear_cache() -> int:
    """Remove every entry; returns the bytes that are free again.

    Only what `cache_entries` lists goes: the folder may hold files of others.
    """
    freed = 0
    for entry in cache_entries():
        freed += entry.bytes
        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink()
    return freed
