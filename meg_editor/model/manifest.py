"""Manifest of a saved folder: size and sha256 of every file, verified before loading."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

CONFIG = "meg_config.json"  # holds the manifest, the only file that is not in it


class SavedModelError(ValueError):
    """A folder which does not hold intact saved edits; the message names the file."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context in which any exception becomes a SavedModelError which names `path`."""
    try:
        yield
    except Exception as error:
        raise SavedModelError(f"{path}: {error}; copy the folder again or save it again") from error


def manifest_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest of a folder: relative file name -> {"sha256": ..., "size": ...}."""
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
        closed: subfolders which must hold no other files than those in the manifest.
        unread: subfolders which are not loaded and need not be intact.

    Raises:
        SavedModelError: naming the first bad file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "edits.jsonl").write_text("{}")
        >>> manifest = manifest_of(folder)
        >>> verify(folder, manifest, required=["edits.jsonl"], closed=[])
        >>> _ = (folder / "edits.jsonl").write_text("{")
        >>> verify(folder, manifest, required=["edits.jsonl"], closed=[])
        Traceback (most recent call last):
        ...
        meg_editor.model.manifest.SavedModelError: ...edits.jsonl: cut short or changed: ...
    """
    for name, stamp in manifest.items():
        # Links are allowed: the hub's cache holds folders of links to files elsewhere.
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive:
            raise SavedModelError(f"{folder / CONFIG}: the file {name!r} is not in the folder")
        if name.partition("/")[0] in unread:
            continue
        with reading(folder / name):
            actual = _stamp(folder / name)
            if actual != stamp:
                raise ValueError(
                    f"cut short or changed: expected {stamp['size']} bytes with sha256 "
                    f"{stamp['sha256'][:12]}…, found {actual['size']} with {actual['sha256'][:12]}…"
                )
    # transformers would read files which were added beside its own.
    strange = {name for name in _names(folder) if name.partition("/")[0] in closed} - {*manifest}
    if wrong := strange | ({*required} - {*manifest}):
        raise SavedModelError(
            f"{folder / CONFIG}: it must list the files {some_of(wrong)}; remove what does not "
            "belong in the folder, or copy or save it again"
        )


def some_of(names: Iterable[str]) -> str:
    """First five of the names, sorted, for a message.

    Example:
        >>> some_of(["b", "a"])
        'a, b'
    """
    first = sorted(names)
    return ", ".join(first[:5]) + (f" and {len(first) - 5} more" if len(first) > 5 else "")


def _stamp(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "size": path.stat().st_size}


def _names(folder: Path) -> list[str]:
    """Relative names of all files except hidden ones, which no library reads."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return sorted(path.relative_to(folder).as_posix() for path in paths)
