"""Finished stages are found again, and only those."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meg_editor.runtime.artifacts import ArtifactStore, Tensors


class Work:
    """A stage which counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> Tensors:
        self.runs += 1
        return {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(True)}


@pytest.mark.parametrize("on_disk", [True, False])
def test_equal_inputs_run_once(tmp_path: Path, on_disk: bool) -> None:
    work, store = Work(), ArtifactStore(tmp_path if on_disk else None)
    first = store.run("gate", [1, {"x": 2, "y": 3}], work)
    again = store.run("gate", [1, {"y": 3, "x": 2}], work)
    assert work.runs == 1 and again.key == first.key and not first.resumed and again.resumed
    assert torch.equal(again.tensors["a"], work()["a"])


@pytest.mark.parametrize(("name", "inputs"), [("gate", [2]), ("encoder", [1])])
def test_other_inputs_and_stages_run_again(tmp_path: Path, name: str, inputs: list[int]) -> None:
    work, store = Work(), ArtifactStore(tmp_path)
    key = store.run("gate", [1], work).key
    assert store.run(name, inputs, work).key != key and work.runs == 2


def test_another_process_resumes(tmp_path: Path) -> None:
    work = Work()
    first = ArtifactStore(tmp_path).run("gate", [1], work)
    second = ArtifactStore(tmp_path).run("gate", [1], work)
    assert work.runs == 1 and second.resumed and second.seconds == first.seconds
    assert second.tensors.keys() == first.tensors.keys()
    for name, value in first.tensors.items():
        assert torch.equal(second.tensors[name], value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_what_fails_is_not_kept(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> Tensors:
        raise error

    with pytest.raises(error):
        ArtifactStore(tmp_path).run("gate", [1], fail)
    assert not any(tmp_path.iterdir())


def test_an_interrupt_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ArtifactStore(tmp_path).run("gate", [1], Work())
    assert not any(tmp_path.iterdir())


def test_a_damaged_stage_is_named(tmp_path: Path) -> None:
    ArtifactStore(tmp_path).run("gate", [1], Work())
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{file} is damaged.*delete it"):
        ArtifactStore(tmp_path).run("gate", [1], Work())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    ArtifactStore(tmp_path).run("gate", [1], Work())
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-9] ^= 1  # within the last tensor: the file is as long and as well-formed as before
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is damaged: its checksum .*delete it"):
        ArtifactStore(tmp_path).run("gate", [1], Work())


def test_the_time_of_what_was_found_is_known(tmp_path: Path) -> None:
    first = ArtifactStore(tmp_path).run("gate", [1], Work())
    store = ArtifactStore(tmp_path)
    store.run("gate", [1], Work())
    assert store.seconds_saved == first.seconds > 0
    store.run("gate", [1], Work())  # counted once
    assert store.seconds_saved == first.seconds


def test_memory_is_bounded_in_bytes() -> None:
    store, work = ArtifactStore(max_bytes=2000), Work()
    for number in range(5):
        store.run("gate", [number], lambda: {"a": torch.zeros(200)})  # 800 bytes
    store.run("gate", [4], work)
    store.run("gate", [3], work)
    assert work.runs == 0
    store.run("gate", [0], work)
    assert work.runs == 1


def test_clear_deletes_what_was_stored_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "stages"
    store = ArtifactStore(folder)
    store.run("gate", [1], Work())
    (folder / "mine.txt").write_text("x")
    store.clear()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    store.clear()
    assert not folder.exists()
    ArtifactStore().clear()
