"""Changes of edits on the disk: two writers, readers, a full disk, kills at any instant."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROMPTS
from live_facts import assert_same, facts, ids, listed, load, three_changes

from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved import saving
from meg_editor.model.saved.appending import OtherWriterError
from meg_editor.runtime.files import holding

CAMPAIGNS = Path(__file__).parent / "campaigns"


pytestmark = pytest.mark.usefixtures("collector")


@pytest.fixture
def model(exact_model: MeGModel) -> MeGModel:
    return exact_model


@pytest.fixture
def folder(model: MeGModel, tmp_path: Path) -> Path:
    """The own folder of `model`, without changes so far."""
    model.save_pretrained(tmp_path / "edits")
    return tmp_path / "edits"


# ------------------------------------------------------------------ writers, readers, disks


def test_the_second_of_two_writers_is_refused(
    model: MeGModel, folder: Path, tmp_path: Path
) -> None:
    first, second, third = (load(model, folder) for _ in range(3))
    first.add(facts(8))
    first.save_pretrained(folder)
    second.add(facts(9))
    third.compact()
    for late in (second, third, second):
        with pytest.raises(OtherWriterError, match="another process changed the edits"):
            late.save_pretrained(folder)
    assert listed(folder) == ids(first)
    second.save_pretrained(tmp_path / "second")  # nothing of it is lost
    assert listed(tmp_path / "second") == ids(second)
    again = load(model, folder)
    again.add(facts(9))
    again.save_pretrained(folder)
    assert listed(folder) == ids(first) | ids(second)
    with pytest.raises(OtherWriterError):
        first.save_pretrained(folder)


def test_what_is_taken_back_after_it_was_saved_is_not_saved(model: MeGModel, folder: Path) -> None:
    with suppress(KeyError), model.transaction():
        model.add(facts(8))
        model.save_pretrained(folder)
        raise KeyError
    model.add(facts(9))
    model.save_pretrained(folder)
    assert listed(folder) == ids(model)
    assert_same(load(model, folder), model)
    model.add(facts(10))  # and goes on from there
    model.save_pretrained(folder)
    assert listed(folder) == ids(model)


def test_what_is_taken_back_does_not_cost_the_stored_base(model: MeGModel, folder: Path) -> None:
    """The save within was forgotten, and with it that the folder has the base."""
    model.save_pretrained(folder, save_base=True)
    before = listed(folder)
    with suppress(KeyError), model.transaction():
        model.remove(PROMPTS[0])
        model.save_pretrained(folder)
        raise KeyError
    assert len(listed(folder)) == len(before) - 1
    model.save_pretrained(folder)
    assert listed(folder) == before and (folder / "base" / "config.json").is_file()


def test_another_writer_is_seen_after_a_change_taken_back(model: MeGModel, folder: Path) -> None:
    with suppress(KeyError), model.transaction():
        model.remove(PROMPTS[0])
        model.save_pretrained(folder)
        raise KeyError
    other = load(model, folder)
    other.remove(PROMPTS[1])
    other.save_pretrained(folder)
    with pytest.raises(OtherWriterError):
        model.save_pretrained(folder)
    assert listed(folder) == ids(other)


@pytest.mark.parametrize("late", ["compact", "change"])
def test_no_change_is_lost_while_a_whole_version_is_written(
    model: MeGModel, folder: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    first, second = (load(model, folder) for _ in range(2))
    first.add(facts(8))
    first.compact()
    second.add(facts(9))
    if late == "compact":
        second.compact()
    real, reported = saving._write, []

    def write(*arguments: Any) -> None:
        real(*arguments)
        if not reported:
            reported.append(second)
            second.save_pretrained(folder)  # meanwhile, by another process

    monkeypatch.setattr(saving, "_write", write)
    with pytest.raises(OtherWriterError):
        first.save_pretrained(folder)
    assert reported and listed(folder) == ids(second) == ids(load(model, folder))


def test_changes_are_seen_before_a_killed_save_is_finished(model: MeGModel, folder: Path) -> None:
    """Readers keep others from finishing it; further changes may be saved all the same."""
    model.add(facts(8))
    shadow = folder.parent / "shadow"
    model.save_pretrained(shadow)
    # As a kill right after the config was replaced leaves it.
    shutil.copytree(shadow, ready := folder / ".meg_config.json.12345678.ready")
    (ready / "obsolete.json").write_text("[]")
    os.replace(ready / "meg_config.json", folder / "meg_config.json")
    model.add(facts(9))
    model.save_pretrained(shadow)
    shutil.copytree(shadow / "changes", folder / "changes")
    with holding(folder, shared=True):
        assert listed(folder) == ids(model)
        assert ids(load(model, folder)) == ids(model) and ready.exists()


def test_a_folder_with_changes_can_be_replaced(model: MeGModel, folder: Path) -> None:
    three_changes(model, folder)
    other = model.fork()
    other.remove(PROMPTS[2])
    other.save_pretrained(folder)
    assert listed(folder) == ids(other) and not list(folder.glob("changes/*/log.jsonl"))
    assert_same(load(model, folder), other)
    model.remove(PROMPTS[3])
    with pytest.raises(OtherWriterError):
        model.save_pretrained(folder)


def test_a_reader_sees_whole_versions(model: MeGModel, folder: Path) -> None:
    versions, seen, done = {ids(model)}, set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(listed(folder))
            seen.add(ids(load(model, folder)))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(12):
        model.add(facts(7 + turn))
        versions.add(ids(model))
        if turn % 4 == 3:
            model.compact()
        model.save_pretrained(folder)
    done.set()
    reader.join()
    assert len(seen) > 1 and seen <= versions


@pytest.mark.parametrize("kind", ["changes", "compact"])
def test_a_full_disk_leaves_a_version_before(
    model: MeGModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each call that has the disk hold something fails once; the next save has everything."""
    real, failing, calls, failed = os.fsync, 0, 0, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for number in range(1, 100, 1 if kind == "changes" else 7):
        place = Path(shutil.copytree(folder, tmp_path / f"{number}"))
        loaded = load(model, place)
        versions = three_changes(loaded, None)
        if kind == "compact":
            loaded.compact()
            versions = versions[:1]
        failing, calls = number, 0
        try:
            loaded.save_pretrained(place)
        except OSError as error:
            failed += 1
            assert error.errno == errno.ENOSPC and str(place) in str(error)
            assert listed(place) in versions and listed(place) == ids(load(model, place))
        else:
            assert listed(place) == ids(loaded)  # it was a folder's name alone
        reached, failing = calls >= number, 0
        loaded.save_pretrained(place)
        assert_same(load(model, place), loaded)
        if not reached:
            break
    assert failed >= 3 and not reached


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_kill_at_any_instant_loses_nothing() -> None:
    command = [sys.executable, str(CAMPAIGNS / "live_kills.py"), "--kills", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "live_kills tried=8 failed=0" in done.stdout, done.stdout + done.stderr


def test_an_index_that_shrinks_is_kept_in_full_again(
    model: MeGModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond some edits embeddings are kept in half precision."""
    monkeypatch.setattr("meg_editor.routing.index._MANY", 6)
    model.add(facts(8))
    assert model.index.anchors.dtype == torch.half
    model.remove([PROMPTS[0], PROMPTS[1]])
    assert model.index.anchors.dtype == torch.float32
    model.compact()
    model.save_pretrained(tmp_path / "edits")
    assert_same(load(model, tmp_path / "edits"), model)


def test_a_misspelt_option_of_saving_is_refused(model: MeGModel, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="savebase"):
        model.save_pretrained(tmp_path / "edits", savebase=True)
    assert not (tmp_path / "edits").exists()
