"""A saved folder at every instant holds one whole version, for readers and after a kill.

A new version is written to a hidden folder inside, `.….part`, and is on the disk before that is
renamed to `.….ready`. Then its config takes the place of the former one, in one step: from here
on the new version is in force, and its files are moved out of the hidden folder, each in one step.
A reader finds them in either place. What a kill leaves is finished or removed at the next save or
load. Only files of the manifests, old and new, are touched.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from meg_editor.model.saved.changes import remove_outdated
from meg_editor.model.saved.manifest import CONFIG, manifest_names
from meg_editor.runtime.files import (
    holding,
    replacing,
    sweep,
    sync,
    sync_tree,
    unfinished_folder,
)

_READY = ".ready"
_READY_NAMES = f".{CONFIG}.*{_READY}"
_OBSOLETE = "obsolete.json"  # names of the former version which the new one lacks
_PATIENCE = 60.0  # seconds to wait for others


def publish(
    folder: Path, write: Callable[[Path], None], check: Callable[[], None] = lambda: None
) -> None:
    """Have `folder` hold what `write` writes to the folder it is given, instead of what it holds.

    Args:
        folder: missing, empty, or a saved version.
        check: called while nobody else can save to `folder`, just before what it holds is
            replaced; may raise.

    Raises:
        What `write` or `check` raises, or OSError; the former version is then still in force.
    """
    if folder.exists():
        sweep(folder.parent, glob.escape(folder.name))
        _replace(folder, write, check)
        return
    with unfinished_folder(folder) as new:
        write(new)
        sync_tree(new)
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            sync(folder.parent)
            return
    _replace(folder, write, check)  # another process was first


class FolderBusyError(OSError):
    """Another process has been writing to the folder all the while."""


@contextmanager
def writing(folder: Path, seconds: float | None = None) -> Iterator[bool]:
    """Keep other writers from a folder, and wait for its readers, who notice a change all the same.

    Yields whether no reader is left. What writers lock is the config in force, or the folder before
    there is one.

    Args:
        seconds: to wait for other writers, and then as long for readers; default: a minute.

    Raises:
        FolderBusyError: another process is writing all the while.
        OSError: the folder cannot be read.
    """
    seconds = _PATIENCE if seconds is None else seconds
    config, end = folder / CONFIG, time.monotonic() + seconds
    with ExitStack() as stack:
        while True:
            place = config if config.exists() else folder
            try:
                locked = stack.enter_context(holding(place, seconds=end - time.monotonic()))
                if locked is False:
                    raise FolderBusyError(
                        errno.EBUSY,
                        f"another process has been writing for {seconds:g} s; save again later",
                        str(folder),
                    )
                if config.exists() == (place is config):
                    break
            except FileNotFoundError:
                if place is folder:
                    raise
            stack.close()
        if place is config:
            locked = stack.enter_context(holding(folder, seconds=seconds))
        yield bool(locked)


def _replace(folder: Path, write: Callable[[Path], None], check: Callable[[], None]) -> None:
    with writing(folder) as alone:
        if alone:
            _finish(folder)
    with unfinished_folder(folder / CONFIG) as new:
        write(new)
        sync_tree(new)
        with writing(folder), holding(new / CONFIG):  # in force before its files are in place
            check()
            former = manifest_names(folder) if (folder / CONFIG).exists() else set()
            obsolete = sorted(former - manifest_names(new))
            with replacing(new / _OBSOLETE) as file:
                file.write(json.dumps(obsolete).encode())
            ready = new.with_suffix(_READY)
            try:
                new.rename(ready)
                sync(folder)
                os.replace(ready / CONFIG, folder / CONFIG)  # from here on the new one is in force
                with suppress(OSError):  # readers look in both places
                    _move_in(folder, ready)
            finally:
                if (ready / CONFIG).exists():
                    shutil.rmtree(ready, ignore_errors=True)


def settle(folder: Path) -> None:
    """Finish or remove what a killed save left inside `folder`, if one may, and nobody reads it."""
    if any(folder.glob(f".{CONFIG}.*")):
        with suppress(OSError), writing(folder, 0.0) as alone:
            if alone:
                _finish(folder)


def _finish(folder: Path) -> None:
    for ready in folder.glob(_READY_NAMES):
        if (ready / CONFIG).exists():  # not in force yet
            shutil.rmtree(ready)
        else:
            _move_in(folder, ready)
    sweep(folder, CONFIG)


def _move_in(folder: Path, ready: Path) -> None:
    """Move the files of a version which is in force out of its hidden folder."""
    listed = ready / _OBSOLETE  # missing if a kill came at the very end
    obsolete = json.loads(listed.read_text("utf-8")) if listed.exists() else []
    for name in sorted(manifest_names(folder)):
        if (ready / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(ready / name, folder / name)
    for name in obsolete:
        (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # the folder is the root, or not empty
            (folder / name).parent.rmdir()
    remove_outdated(folder)
    sync(folder)
    for hidden in _in_force(folder):  # also those of killed saves which nobody could finish
        shutil.rmtree(hidden)


def _in_force(folder: Path) -> Iterator[Path]:
    """Hidden folders whose config has taken its place."""
    return (path for path in folder.glob(_READY_NAMES) if not (path / CONFIG).exists())


def places(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """Where the files of the version in force are: some may not be moved to their place yet."""
    ready = next(_in_force(folder), folder)
    # os.path.exists is False for a name that no file can have; Path's raises.
    waiting = {name for name in names if os.path.exists(ready / name)}
    return {name: (ready if name in waiting else folder) / name for name in names}


@contextmanager
def whole_version(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """Folder with the files of the version in force, for a reader.

    It is `folder` itself unless a killed save waits to be finished by somebody who may write.
    """
    found = places(folder, names)
    if all(path == folder / name for name, path in found.items()):
        yield folder
        return
    with TemporaryDirectory(prefix="meg-editor-") as temporary:
        view = Path(temporary)
        for name, source in {CONFIG: folder / CONFIG, **found}.items():
            (view / name).parent.mkdir(parents=True, exist_ok=True)
            (view / name).symlink_to(source.absolute())
        yield view
