"""Size and sha256 of every file of a saved folder: damage is found before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

CONFIG = "meg_config.json"  # the file which holds the manifest, the only one that is not in it


class SavedModelError(ValueError):
    """A folder which does not hold intact saved edits; the message names the file."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names `path` in whatever goes wrong: libraries raise anything when a file is not theirs."""
    try:
        yield
    except Exception as error:
        raise SavedModelError(f"{path}: {error}; copy the folder again or save it again") from error


def manifest_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative name -> {"sha256": ..., "size": ...} of all files in a folder."""
    return {name: _stamp(folder / name) for name in _names(folder)}


def verify(
    folder: Path,
    manifest: Mapping[str, Any],
    required: Collection[str],
    closed: Collection[str],
    unread: Collection[str] = (),
) -> None:
    """Compare a folder with its manifest.

    Args:
        required: files which must be in the manifest.
        closed: subfolders which must hold nothing else than what is in it.
        unread: subfolders which will not be read, and need not be intact.

    Raises:
        SavedModelError: naming the first bad file.
    """
    for name, told in manifest.items():
        # Links are allowed: the hub's cache holds folders of links to files elsewhere.
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive:
            raise SavedModelError(f"{folder / CONFIG}: the file {name!r} is not in the folder")
        if name.partition("/")[0] in unread:
            continue
        with reading(folder / name):
            found = _stamp(folder / name)
            if found != told:
                raise ValueError(
                    f"cut short or changed: expected {told['size']} bytes with sha256 "
                    f"{told['sha256'][:12]}…, found {found['size']} with {found['sha256'][:12]}…"
                )
    # transformers would read files which have been put beside its own.
    strange = {name for name in _names(folder) if name.partition("/")[0] in closed} - {*manifest}
    if wrong := strange | ({*required} - {*manifest}):
        raise SavedModelError(
            f"{folder / CONFIG}: it must list the files {some_of(wrong)}; remove what does not "
            "belong in the folder, or copy or save it again"
        )


def some_of(names: Iterable[str]) -> str:
    """The first few of many names, for a message."""
    first = sorted(names)
    return ", ".join(first[:5]) + (f" and {len(first) - 5} more" if len(first) > 5 else "")


def _stamp(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "size": path.stat().st_size}


def _names(folder: Path) -> list[str]:
    """Relative names of all files but hidden ones, which no library reads."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return sorted(path.relative_to(folder).as_posix() for path in paths)
