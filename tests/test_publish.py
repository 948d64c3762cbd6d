"""A saved folder holds one whole version at every instant, whoever is killed when."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from meg_editor.model.saved.manifest import CONFIG, checksum, manifest_of, read_config, verify
from meg_editor.model.saved.publish import FolderBusyError, publish, settle, whole_version, writing
from meg_editor.runtime.files import holding, replacing, sweep, unfinished_name

OPERATIONS = [(os, name) for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")]


def write(folder: Path, version: str) -> None:
    """A version whose files all hold its name; "new" has one file less and one more."""
    for name in ("a.txt", "encoder/b.txt", f"encoder/{version}.txt", f"{version}/c.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(version)
    config = {"format_version": 0, "version": version, "files": manifest_of(folder)}
    (folder / CONFIG).write_text(json.dumps({**config, "checksum": checksum(config)}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publish(tmp_path / "edits", partial(write, version="old"))
    return tmp_path / "edits"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for."""
    monkeypatch.setattr("meg_editor.model.saved.publish._PATIENCE", 0.05)


def version_of(folder: Path) -> str:
    """The version in force, all files of which are as it wrote them."""
    files = read_config(folder)["files"]
    with whole_version(folder, files) as view:
        verify(view, files, required=["a.txt"], closed=[])
        return (view / "a.txt").read_text()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def killed_at(point: int, run: Callable[[], Any]) -> bool:
    """Run in a process which ends without any clean-up around its n-th file operation.

    Even points end right before an operation, odd ones right after it.

    Returns:
        Whether it got so far.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    try:
        count = iter(range(0, 10**6, 2))

        def wrapped(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            here = next(count)
            if here == point:
                os._exit(9)
            try:
                return operation(*args, **kwargs)
            finally:
                if here + 1 == point:
                    os._exit(9)

        for module, name in OPERATIONS:
            setattr(module, name, partial(wrapped, getattr(module, name)))
        run()
    finally:
        os._exit(0)


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a version"])
def test_a_kill_at_any_point_leaves_a_whole_version(tmp_path: Path, before: str) -> None:
    reached, point = True, 0
    while reached:
        folder = tmp_path / f"{point}" / "edits"
        folder.parent.mkdir()
        if before == "an empty folder":
            folder.mkdir()
        if before == "a version":
            publish(folder, partial(write, version="old"))
        reached = killed_at(point, lambda at=folder: publish(at, partial(write, version="new")))
        if before == "a version" or (folder / CONFIG).exists():
            assert version_of(folder) in ("old", "new")  # as it was left
            settle(folder)
            assert version_of(folder) in ("old", "new")
            assert not [path for path in folder.iterdir() if path.name[0] == "."]
        publish(folder, partial(write, version="new"))  # the same command again
        assert version_of(folder) == "new"
        assert names(folder.parent) == {
            f"edits/{name}"
            for name in ("a.txt", "encoder/b.txt", "encoder/new.txt", "new/c.txt", CONFIG)
        }
        point += 1
    assert point > 20


def test_what_the_manifests_do_not_name_is_left_alone(tmp_path: Path) -> None:
    publish(tmp_path / "edits", partial(write, version="old"))
    (tmp_path / "edits" / "encoder" / "mine.txt").write_text("mine")
    (tmp_path / "edits" / ".part").write_text("mine")
    (tmp_path / ".edits.other.part").write_text("mine")
    publish(tmp_path / "edits", partial(write, version="new"))
    assert (tmp_path / "edits" / "encoder" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "edits" / ".part").exists() and (tmp_path / ".edits.other.part").exists()
    assert not (tmp_path / "edits" / "old").exists()


def test_one_who_may_only_read_sees_the_version_in_force(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    publish(folder, partial(write, version="old"))
    publish(shadow := tmp_path / "shadow", partial(write, version="new"))
    # As a kill right after the config was replaced leaves it.
    shutil.copytree(shadow, ready := folder / f".{CONFIG}.12345678.ready")
    (ready / "obsolete.json").write_text('["old/c.txt", "encoder/old.txt"]')
    os.replace(ready / CONFIG, folder / CONFIG)
    with holding(folder, shared=True) as reading:  # so that nobody can finish it
        settle(folder)
        assert reading and ready.exists() and version_of(folder) == "new"
    settle(folder)
    assert not ready.exists() and version_of(folder) == "new" and not (folder / "old").exists()


def test_a_writer_waits_for_writers_and_goes_on_beside_readers(
    folder: Path, impatient: None
) -> None:
    """Two of them that had waited long enough for a slow reader wrote at the same time."""
    with holding(folder, shared=True), writing(folder), holding(folder, shared=True) as reading:
        assert reading
        with pytest.raises(FolderBusyError, match="another process has been writing for 0.05 s"):
            publish(folder, partial(write, version="new"))
        assert version_of(folder) == "old"
    with holding(folder, shared=True):
        publish(folder, partial(write, version="new"))
    assert version_of(folder) == "new" and names(folder) == {
        *read_config(folder)["files"],
        CONFIG,
    }


def test_a_process_forked_meanwhile_holds_no_lock(tmp_path: Path) -> None:
    with holding(tmp_path):
        if not (pid := os.fork()):
            time.sleep(1.0)
            os._exit(0)
    with holding(tmp_path) as locked:
        assert locked
    os.waitpid(pid, 0)


@pytest.mark.parametrize("version", ["none", "old"])
def test_a_writer_waits_for_the_one_whose_version_is_in_force(tmp_path: Path, version: str) -> None:
    """Before there is a version writers lock the folder, afterwards its config."""
    (folder := tmp_path / "edits").mkdir()
    if version == "old":
        publish(folder, partial(write, version="old"))
    seen: list[str] = []

    def wait() -> None:
        with writing(folder):
            seen.append(read_config(folder)["version"])

    waiting = threading.Thread(target=wait)
    (new := folder / ".new").mkdir()
    write(new, "new")
    with writing(folder), holding(new / CONFIG):
        waiting.start()
        time.sleep(0.1)
        os.replace(new / CONFIG, folder / CONFIG)
        with holding(folder / CONFIG) as free:
            assert not free and not seen
    waiting.join()
    assert seen == ["new"]


def test_nobody_finishes_what_is_being_written(
    folder: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a slow reader, who ends in the midst of it."""
    replace, free = os.replace, []

    def settled(source: Any, target: Any) -> None:
        reader.close()
        settle(folder)  # by one who loads
        replace(source, target)
        with holding(folder / CONFIG) as locked:  # by another writer
            free.append(locked)

    with ExitStack() as reader:
        reader.enter_context(holding(folder, shared=True))
        monkeypatch.setattr(os, "replace", settled)
        publish(folder, partial(write, version="new"))
    assert version_of(folder) == "new" and not any(free)


def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    with replacing(tmp_path / "report.json") as file:
        file.write(b"1")
        sweep(tmp_path)
        dead = unfinished_name(tmp_path / "report.json")
        dead.touch()
        sweep(tmp_path)
        assert not dead.exists()
    assert (tmp_path / "report.json").read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "true.json").write_text("old")
    (tmp_path / "link.json").symlink_to("true.json")
    with replacing(tmp_path / "link.json") as file:
        file.write(b"new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "true.json").read_text() == "new"


def test_no_device_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, kind in (("pipe", "pipe"), ("null", "device"), (".", "folder")):
        writing = replacing(tmp_path / name)
        with pytest.raises(OSError, match=f"expected a regular file, got a {kind}"), writing:
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]
