"""Manifest of a saved folder: size and sha256 of every file, verified before loading.

The config holds it, and a checksum of itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from meg_editor.lm.sources import EDITS_CONFIG
from meg_editor.runtime.files import check_regular

CONFIG = EDITS_CONFIG  # holds the manifest, the only file that is not in it
CHECKSUM = "checksum"  # its key for the sha256 of the config
_MAX_CONFIG = 2**26  # bytes


class SavedModelError(ValueError):
    """A folder which does not hold intact saved edits; the message names the file."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context in which any exception becomes a SavedModelError which names `path`."""
    try:
        yield
    except Exception as error:
        raise SavedModelError(f"{path}: {error}; copy the folder again or save it again") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Parsed config of a folder, whose content is not checked but for its checksum.

    Raises:
        ValueError: it is no JSON object, or was changed since it was saved.
        OSError: it cannot be read, or is no file.
    """
    found = check_regular(folder / CONFIG)
    if found is not None and found.st_size > _MAX_CONFIG:
        raise ValueError(f"expected at most {_MAX_CONFIG} bytes, got {found.st_size}")
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"expected an object, got {type(config).__name__}")
    if CHECKSUM in config and config[CHECKSUM] != checksum(config):
        raise ValueError("changed since it was saved: its checksum is another one")
    return config


def checksum(config: Mapping[str, Any]) -> str:
    """Sha256 of all of a config but its checksum.

    Example:
        >>> config = {"edits": 3}
        >>> checksum(config) == checksum({**config, "checksum": checksum(config)})
        True
    """
    content = {key: value for key, value in config.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def manifest_names(folder: Path) -> set[str]:
    """The files which the config of a folder names, of this or an earlier format.

    Raises:
        SavedModelError: it is not the config of saved edits.
    """
    with reading(folder / CONFIG):
        config = read_config(folder)
        files = config.get("files")
        if not isinstance(files, dict) or "format_version" not in config:
            raise ValueError("it lists no files of saved edits")
        for name in files:
            check_name(name)
        return set(files)


def check_name(name: str) -> None:
    """Check that a name in a manifest stays in the folder.

    Raises:
        ValueError: it does not.

    Example:
        >>> check_name("../x")
        Traceback (most recent call last):
        ...
        ValueError: the file '../x' is not in the folder
    """
    path = PurePosixPath(name)
    strange = path.is_absolute() or ".." in path.parts or str(path) != name or name == "."
    # No file can have NUL or half a character in its name.
    if strange or re.search(r"[\\\0\ud800-\udfff]", name) or PureWindowsPath(name).drive:
        raise ValueError(f"the file {name[:80]!r} is not in the folder")


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
        meg_editor.model.saved.manifest.SavedModelError: ...edits.jsonl: cut short or changed: ...
    """
    for name, stamp in manifest.items():
        with reading(folder / CONFIG):
            check_name(name)
        if name.partition("/")[0] in unread:
            continue
        with reading(folder / name):
            # Links are allowed: the hub's cache holds folders of links to files elsewhere.
            found = check_regular(folder / name)
            if found is not None and found.st_size != stamp["size"]:
                raise ValueError(
                    f"cut short or changed: expected {stamp['size']} bytes, found {found.st_size}"
                )
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
