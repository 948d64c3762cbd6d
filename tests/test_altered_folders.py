"""Whatever becomes of a saved folder, it is refused, or loads as it was saved."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meg_editor import MeGModel
from meg_editor.lm.reference import WrongModelError
from meg_editor.model.saved.checks import check_sizes
from meg_editor.model.saved.loading import from_pretrained
from meg_editor.model.saved.manifest import CONFIG, SavedModelError, checksum, manifest_of
from meg_editor.model.saved.saving import check_destination, save_pretrained


@pytest.fixture(scope="module")
def model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model("bank")


@pytest.fixture
def folder(model: MeGModel, tmp_path: Path) -> Path:
    save_pretrained(model, tmp_path / "edits")
    return tmp_path / "edits"


def stamped(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the config, and have the manifest and its checksum agree with what is there."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    change(config)
    config["files"] = {k: v for k, v in manifest_of(folder).items() if k != CONFIG}
    (folder / CONFIG).write_text(json.dumps({**config, "checksum": checksum(config)}), "utf-8")


# -------------------------------------------------------------------------------- the config


def test_every_flipped_bit_of_the_config_is_noticed(model: MeGModel, folder: Path) -> None:
    whole, rng = (folder / CONFIG).read_bytes(), random.Random(0)
    saved = from_pretrained(folder, base=model.base)
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (folder / CONFIG).write_bytes(data)
        try:
            loaded = from_pretrained(folder, base=model.base)
        except SavedModelError:
            continue
        assert json.loads(data) == json.loads(whole)  # white space for white space
        assert loaded.spec == saved.spec and loaded.hparams == saved.hparams


@pytest.mark.parametrize(
    ("where", "value", "problem"),
    [
        (("neuron", "layer"), 99, "expected the neuron of the base model"),
        (("neuron", "read"), "model.layers.0.mlp", "expected the neuron of the base model"),
        (("neuron", "write"), "no.such", "expected the neuron of the base model"),
        (("hparams", "layers"), [99], "layer 99"),
        (("hparams", "layers"), [0], "expected the neuron of the base model"),
    ],
)
def test_a_neuron_elsewhere_is_refused(
    model: MeGModel, folder: Path, where: tuple[str, str], value: Any, problem: str
) -> None:
    stamped(folder, lambda config: config[where[0]].update({where[1]: value}))
    with pytest.raises(WrongModelError, match=problem):
        from_pretrained(folder, base=model.base)


@pytest.mark.parametrize(
    "change",
    [
        {"generator": "dit", "generator_depth": 10**7},
        {"generator": "dit", "generator_width": 10**12},
        {"generator": "mlp", "generator_width": 2**16},
        {"gate": "familiarity", "generator_depth": 999},
        {"seed": 10**40},
    ],
    ids=str,
)
def test_sizes_without_the_tensors_for_them_take_no_memory(
    model: MeGModel, folder: Path, change: dict[str, Any]
) -> None:
    stamped(folder, lambda config: config["hparams"].update(change))
    with pytest.raises(SavedModelError, match=r"expected less|unexpected tensors|missing tensors"):
        from_pretrained(folder, base=model.base)


@pytest.mark.parametrize("size", [10**11, 10**18, 10**40])
def test_an_impossible_neuron_takes_no_memory(model: MeGModel, folder: Path, size: int) -> None:
    stamped(folder, lambda config: config["neuron"].update(hidden_size=size))
    with pytest.raises(SavedModelError):
        from_pretrained(folder, base=model.base)


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "\x1b[2J", "x" * 5000])
def test_a_message_about_odd_names_can_be_printed(model: MeGModel, folder: Path, name: str) -> None:
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    for value in ("", {"sha256": "", "size": 1}):
        config["files"][name] = value
        text = json.dumps({**config, "checksum": checksum(config)})
        (folder / CONFIG).write_text(text, "utf-8")
        with pytest.raises(SavedModelError) as caught:
            from_pretrained(folder, base=model.base)
        str(caught.value).encode()
        assert value or (str(caught.value).isprintable() and len(str(caught.value)) < 500)


@pytest.mark.parametrize(
    ("name", "number"),
    [("num_hidden_layers", 10**7), ("vocab_size", 10**11), ("max_position_embeddings", 10**10)],
)
def test_an_encoder_config_beyond_its_tensors_is_refused(
    model: MeGModel, folder: Path, name: str, number: int
) -> None:
    path = folder / "encoder" / "config.json"
    check_sizes(folder / "encoder")
    path.write_text(json.dumps({**json.loads(path.read_text()), name: number}))
    stamped(folder, lambda config: None)
    with pytest.raises(SavedModelError, match=f"{name} {number}: expected at most"):
        from_pretrained(folder, base=model.base)


# --------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("name", ["generator", "index", "encoder/model"])
def test_tensors_which_are_not_finite_are_refused(model: MeGModel, folder: Path, name: str) -> None:
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    key = next(key for key, value in tensors.items() if value.is_floating_point())
    tensors[key] = (
        tensors[key]
        .clone()
        .flatten()
        .index_fill_(0, torch.tensor(0), float("nan"))
        .view_as(tensors[key])
    )
    save_file(tensors, path, {"format": "pt"})
    stamped(folder, lambda config: None)
    with pytest.raises(SavedModelError, match="holds NaN or infinity"):
        from_pretrained(folder, base=model.base)


@pytest.mark.parametrize("name", [CONFIG, "edits.jsonl", "encoder/config.json"])
@pytest.mark.parametrize("to", ["pipe", "/dev/zero", "/dev/random", "nowhere", "itself"])
def test_what_is_no_file_is_refused_at_once(
    model: MeGModel, folder: Path, name: str, to: str
) -> None:
    (folder / name).unlink()
    if to == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to((folder / name).name if to == "itself" else to)
    with pytest.raises((SavedModelError, FileNotFoundError)):
        from_pretrained(folder, base=model.base)


def test_everybody_may_load_what_the_umask_lets(model: MeGModel, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_pretrained(model, tmp_path / "edits", save_base=True)
    finally:
        os.umask(before)
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "edits").rglob("*")
        if path.is_file()
    }
    assert modes == {0o640}


# ---------------------------------------------------------------------------------- destinations


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


def _file(path: Path) -> None:
    path.write_text("mine")


def _linked(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        make(path.with_name("target"))
        path.symlink_to("target")

    return link


def _full(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def _foreign_config(path: Path) -> None:
    path.mkdir()
    (path / CONFIG).write_text('{"format_version": 1}')


PLACES: dict[str, Callable[[Path], Any]] = {
    "a pipe": _fifo,
    "a socket": _socket,
    "a file": _file,
    "a full folder": _full,
    "a config of something else": _foreign_config,
    "a link to a pipe": _linked(_fifo),
    "a link to a socket": _linked(_socket),
    "a link to a file": _linked(_file),
    "a link to a full folder": _linked(_full),
    "a link to a device": lambda path: path.symlink_to("/dev/null"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def picture(root: Path) -> dict[str, Any]:
    """Kind, identity and content of everything below a folder."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.lstat().st_ino,
            path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None,
        )
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("place", PLACES)
def test_nothing_else_is_overwritten(
    model: MeGModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    PLACES[place](tmp_path / "edits")
    before = picture(tmp_path)
    for save in (check_destination, model.save_pretrained):
        with pytest.raises(OSError):
            save(tmp_path / "edits")
    assert picture(tmp_path) == before


@pytest.mark.parametrize("name", ["encoder/mine.txt", "tokenizer/vocab.txt", "base/x", "new/x"])
def test_files_of_others_among_ours_are_not_deleted(
    model: MeGModel, folder: Path, name: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = picture(folder)
    with pytest.raises(FileExistsError, match=name):
        save_pretrained(model.fork(), folder)
    assert picture(folder) == before


def test_a_folder_of_ours_which_is_a_link_is_not_followed(model: MeGModel, folder: Path) -> None:
    shutil.move(folder / "encoder", folder.parent / "elsewhere")
    (folder / "encoder").symlink_to("../elsewhere")
    with pytest.raises(FileExistsError, match="encoder"):
        save_pretrained(model.fork(), folder)
    assert (folder.parent / "elsewhere" / "config.json").exists()


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a\0b", "x" * 300])
def test_a_name_which_no_file_has_is_an_oserror(model: MeGModel, name: str) -> None:
    for action in (check_destination, model.save_pretrained):
        with pytest.raises(OSError):
            action(name)
    with pytest.raises(OSError):
        from_pretrained(name)
