"""While one process saves and another one loads: a load is of one version, whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved_content import content

from meg_editor import MeGModel
from meg_editor.model.saved import publish, versions
from meg_editor.model.saved.listing import saved_edits
from meg_editor.model.saved.loading import from_pretrained
from meg_editor.model.saved.manifest import SavedModelError
from meg_editor.model.saved.saving import check_destination, save_pretrained
from meg_editor.runtime import files


@pytest.fixture(scope="module")
def model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model("bank")


@pytest.fixture
def folder(model: MeGModel, tmp_path: Path) -> Path:
    save_pretrained(model, tmp_path / "edits")
    return tmp_path / "edits"


@pytest.mark.parametrize("locks", [True, False])
def test_a_load_beside_a_save_is_one_version(
    make_meg_model: Callable[..., MeGModel],
    model: MeGModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    locks: bool,
) -> None:
    other = make_meg_model("bank", n=3)
    versions = [content(model), content(other)]
    assert versions[0] != versions[1]
    if not locks:  # a file system without them: readers notice and read again
        monkeypatch.setattr(files, "fcntl", None)
    done = threading.Event()

    def save() -> None:
        turn = 0
        while not done.is_set():
            save_pretrained((other, model)[turn % 2].fork(), folder)  # no changes to append
            turn += 1
            done.wait(0.0 if locks else 0.2)

    saver = threading.Thread(target=save)
    saver.start()
    loads = []
    try:
        for _ in range(12):
            try:
                loads.append(content(from_pretrained(folder, base=model.base)))
            except SavedModelError as error:
                assert not locks and "another process saved" in str(error)
    finally:
        done.set()
        saver.join()
    assert len(loads) == 12 or not locks
    assert all(load in versions for load in loads)


@pytest.mark.parametrize("read", ["load", "list"])
def test_files_moved_between_two_looks_are_looked_for_again(
    make_meg_model: Callable[..., MeGModel],
    model: MeGModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: str,
) -> None:
    """A save without locks moves its files in while a reader links to where they were."""
    other = make_meg_model("bank", n=3)
    monkeypatch.setattr(files, "fcntl", None)
    move_in = publish._move_in
    with monkeypatch.context() as killed:
        killed.setattr(publish, "_move_in", lambda *_: None)
        save_pretrained(other, folder)
    places, looks = publish.places, []

    def moved_after(*given: Any) -> dict[str, Path]:
        found = places(*given)
        looks.append(found)
        if len(looks) == 2:
            move_in(folder, next(folder.glob(".*.ready")))
        return found

    monkeypatch.setattr(publish, "places", moved_after)
    monkeypatch.setattr(versions, "places", moved_after)
    if read == "load":
        assert content(from_pretrained(folder, base=model.base)) == content(other)
    else:
        assert saved_edits(folder) == tuple(other.edits)
    assert len(looks) > 2


def test_without_locks_a_killed_save_is_no_part_of_the_next(
    make_meg_model: Callable[..., MeGModel],
    model: MeGModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with monkeypatch.context() as killed:
        killed.setattr(publish, "_move_in", lambda *_: None)
        save_pretrained(make_meg_model("bank", n=3), folder)
    save_pretrained(model.fork(), folder)
    assert content(from_pretrained(folder, base=model.base)) == content(model)
    assert not list(folder.glob(".*"))


def test_a_probe_that_another_process_sweeps_is_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Path.rmdir

    def swept_before(path: Path) -> None:
        remove(path)
        remove(path)

    monkeypatch.setattr(Path, "rmdir", swept_before)
    assert check_destination(folder) == folder


@pytest.mark.parametrize("creates", ["mkdir", "touch"])
def test_what_is_swept_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, creates: str
) -> None:
    """Between creation and lock another process takes it for what a killed save left."""
    create, swept = getattr(Path, creates), []

    def swept_at_once(path: Path, **options: Any) -> None:
        create(path, **options)
        if not swept:
            swept.append(path)
            files.sweep(path.parent)

    monkeypatch.setattr(Path, creates, swept_at_once)
    if creates == "mkdir":
        with files.unfinished_folder(tmp_path / "edits") as new:
            assert new.is_dir()
    else:
        with files.replacing(tmp_path / "edits") as file:
            file.write(b"whole")
        assert (tmp_path / "edits").read_bytes() == b"whole"
    assert len(swept) == 1 and not list(tmp_path.glob(".*"))
