"""The log of live changes: saved, loaded, cut and changed; a version is whole or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import PROMPTS
from live_facts import TEXTS, assert_same, facts, ids, listed, load, log_of, three_changes
from test_persistence import contents, retell, rewrite

from meg_editor.edits.log import read_log
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.listing import saved_changes, saved_edits
from meg_editor.model.saved.manifest import SavedModelError

pytestmark = pytest.mark.usefixtures("collector")


@pytest.fixture
def model(exact_model: MeGModel) -> MeGModel:
    return exact_model


@pytest.fixture
def folder(model: MeGModel, tmp_path: Path) -> Path:
    """The own folder of `model`, without changes so far."""
    model.save_pretrained(tmp_path / "edits")
    return tmp_path / "edits"


# ------------------------------------------------------------------------- saved and loaded


def test_only_changes_are_written_to_the_own_folder(model: MeGModel, folder: Path) -> None:
    before = {name: (folder / name).stat() for name in contents(folder)}
    three_changes(model, folder)
    after = {name: (folder / name).stat() for name in contents(folder)}
    assert all(
        (s.st_ino, s.st_mtime_ns) == (after[n].st_ino, after[n].st_mtime_ns)
        for n, s in before.items()
    )
    names = sorted(Path(name).name for name in after.keys() - before.keys())
    assert names == ["000001.safetensors", "000003.safetensors", "log.jsonl"]
    log = log_of(folder).read_bytes()
    model.save_pretrained(folder)  # nothing new
    assert log_of(folder).read_bytes() == log

    loaded = load(model, folder)
    assert_same(loaded, model)
    assert [line.content["kind"] for line in saved_changes(folder)] == ["add", "remove", "replace"]
    model.undo(2)
    loaded.undo(2)
    loaded.add(facts(10))
    loaded.save_pretrained(folder)
    assert_same(load(model, folder), loaded)
    assert loaded.answer(PROMPTS[:6], 4) == model.answer(PROMPTS[:6], 4)
    loaded.undo(2)
    assert {edit.prompt for edit in loaded.edits} == set(PROMPTS[:6])


def test_another_folder_gets_the_history_too(model: MeGModel, folder: Path, tmp_path: Path) -> None:
    versions = three_changes(model, folder)
    moved = load(model, folder)
    moved.save_pretrained(tmp_path / "moved")
    assert (tmp_path / "moved" / "history" / "log.jsonl").exists()
    assert_same(load(model, tmp_path / "moved"), model)
    moved.undo()  # of what the history holds, noted among the changes
    moved.add(facts(10))
    moved.save_pretrained(tmp_path / "moved")
    again = load(model, tmp_path / "moved")
    assert_same(again, moved)
    assert listed(tmp_path / "moved") == ids(moved) == versions[2] | {moved.edits[-1].id}
    again.undo(3)
    assert ids(again) == versions[0]


def test_folders_of_older_formats_are_read_and_then_written_anew(
    model: MeGModel, folder: Path
) -> None:
    path = folder / "edits.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    old = [{k: v for k, v in row.items() if k not in ("when", "by", "stored")} for row in rows]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in old), "utf-8")
    retell(folder, "edits.jsonl")
    for version in (3, 4):
        rewrite(folder, lambda c, v=version: c.update(format_version=v))
        rewrite(folder, lambda c: c.pop("stored_beside", None) and None)
        loaded = load(model, folder)
        assert loaded.edits == model.edits and loaded.answer(TEXTS, 4) == model.answer(TEXTS, 4)
        assert {edit.state for edit in loaded.edits} == {"stored"}
        assert listed(folder) == ids(model)
    loaded.add(facts(8))
    loaded.save_pretrained(folder)  # not as changes, which older versions would not see
    assert json.loads((folder / "meg_config.json").read_text())["format_version"] > 4
    assert_same(load(model, folder), loaded)


def test_compact_reclaims_what_removed_edits_occupy(model: MeGModel, folder: Path) -> None:
    size = sum(map(len, contents(folder).values()))
    for row in range(6, 16):
        model.add(facts(row))
        model.save_pretrained(folder)
        model.remove(PROMPTS[row])
        model.save_pretrained(folder)
    grown = sum(map(len, contents(folder).values()))
    model.add(facts(16))
    model.compact()
    model.save_pretrained(folder)
    files = contents(folder)
    assert sum(map(len, files.values())) < size + 600 < grown
    assert not [name for name in files if name.startswith(("changes/", "history/"))]
    loaded = load(model, folder)
    assert_same(loaded, model)
    assert loaded.history() == () and "Genovia" not in files["edits.jsonl"].decode()


def test_a_compacted_version_which_was_there_before_has_no_changes(
    model: MeGModel, folder: Path
) -> None:
    """Its files, and the checksum of its config, may be those of the version that had some."""
    first = ids(model)
    model.add(facts(8))
    model.save_pretrained(folder)
    model.undo()
    model.compact()
    model.save_pretrained(folder)
    assert listed(folder) == first == ids(load(model, folder))
    model.add(facts(9))
    model.save_pretrained(folder)
    assert_same(load(model, folder), model)


# ------------------------------------------------------------------------- cut and changed


def test_a_log_cut_at_any_byte_is_an_earlier_version(model: MeGModel, folder: Path) -> None:
    versions = three_changes(model, folder)
    log = log_of(folder)
    whole = log.read_bytes()
    assert whole.count(b"\n") == 3
    for cut in range(len(whole) + 1):
        log.write_bytes(whole[:cut])
        assert listed(folder) == versions[whole[:cut].count(b"\n")], cut
    second = whole.index(b"\n") + 1
    for cut in (0, second - 1, second, second + 40, len(whole) - 1):
        log.write_bytes(whole[:cut])
        loaded = load(model, folder)
        assert ids(loaded) == versions[whole[:cut].count(b"\n")]
        assert loaded.answer(TEXTS, 2)
    log.write_bytes(whole[: second + 40])
    loaded = load(model, folder)
    loaded.add(facts(11))  # takes the place of what was cut
    loaded.save_pretrained(folder)
    assert_same(load(model, folder), loaded)
    assert listed(folder) == versions[1] | {loaded.edits[-1].id}
    log.unlink()
    assert listed(folder) == versions[0] == ids(load(model, folder))


def test_a_changed_byte_is_refused(model: MeGModel, folder: Path) -> None:
    three_changes(model, folder)
    log = log_of(folder)
    whole = log.read_bytes()
    checksum = json.loads((folder / "meg_config.json").read_text("utf-8"))["checksum"]
    for place in range(len(whole)):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="line . of the log"):
            read_log(log.parent, checksum)
    for read in (saved_edits, lambda place: load(model, place)):
        with pytest.raises(SavedModelError, match="/changes.*: line 3 of the log"):
            read(folder)
    lines = whole.splitlines(keepends=True)
    for wrong in (lines[1:], [lines[0], lines[0]], [lines[1], lines[0]], [*lines, b"{}\n"]):
        log.write_bytes(b"".join(wrong))
        with pytest.raises(SavedModelError, match="of the log"):
            load(model, folder)
    log.write_bytes(whole)
    for shard in log.parent.glob("*.safetensors"):
        data = shard.read_bytes()
        for bad in (data[:-1], data[:50] + bytes([data[50] ^ 1]) + data[51:], b"", None):
            shard.unlink() if bad is None else shard.write_bytes(bad)
            with pytest.raises(SavedModelError, match=shard.name):
                load(model, folder)
        shard.write_bytes(data)
    assert_same(load(model, folder), model)


def test_changes_to_other_edits_are_refused(model: MeGModel, folder: Path) -> None:
    model.remove(PROMPTS[0])
    model.save_pretrained(folder)
    path = folder / "edits.jsonl"
    path.write_text(path.read_text("utf-8").replace("Atlantis", "Borduria"), "utf-8")
    with pytest.raises(SavedModelError, match="edits.jsonl: cut short or changed"):
        saved_edits(folder)
    retell(folder, path.name)  # another version: its changes are others
    log = log_of(folder)
    config = json.loads((folder / "meg_config.json").read_text("utf-8"))
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    model = load(model, folder)
    assert "Atlantis" not in repr(model.edits) and len(lines) == 1
    log.parent.rename(log.parent.with_name(config["checksum"][:16]))
    with pytest.raises(SavedModelError, match="line 1 of the log.*another log"):
        saved_edits(folder)


def test_the_log_of_another_folder_is_refused(
    model: MeGModel, folder: Path, tmp_path: Path
) -> None:
    three_changes(model, folder)
    model.save_pretrained(other := tmp_path / "other")
    model.remove(PROMPTS[2])
    model.save_pretrained(other)
    shutil.copy(log_of(folder), log_of(other))
    with pytest.raises(SavedModelError, match="line 1 of the log"):
        saved_edits(other)
