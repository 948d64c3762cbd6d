"""Damages of a saved folder: what disks, copies, other programs and strangers do to it."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from meg_editor.model.saved.manifest import CONFIG, checksum, manifest_of

Damage = Callable[[Path, Path, random.Random], str]
TENSORS = ("gate", "generator", "index", "encoder/model")
# What no saved edits have, whatever their config says otherwise.
VALUES: tuple[Any, ...] = (
    None,
    1,
    -1,
    "x",
    "",
    [],
    {},
    True,
    1.5,
    [[]],
    10**40,
    "\ud800",
    "a\0b",
    "x" * 10**5,
)
SIZES: tuple[Any, ...] = (-1, 10**7, 10**12, 10**40, "x", None, True, 1.5)
LINKS = ("/dev/zero", "/dev/random", "/dev/null", "/dev/stdin", "/etc/passwd", "nowhere", "/", "")


def files_of(folder: Path) -> list[str]:
    """The names of all files of a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def stamp(folder: Path) -> None:
    """Have the manifest and the checksum agree with what is there."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    config["files"] = {name: s for name, s in manifest_of(folder).items() if name != CONFIG}
    (folder / CONFIG).write_text(json.dumps({**config, "checksum": checksum(config)}), "utf-8")


def _any_file(folder: Path, rng: random.Random) -> Path:
    return folder / rng.choice(files_of(folder))


def flip(folder: Path, other: Path, rng: random.Random) -> str:
    """One bit, in the config as often as in all others."""
    path = folder / CONFIG if rng.random() < 0.5 else _any_file(folder, rng)
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"bit flipped in {path.name} at {place}"


def truncate(folder: Path, other: Path, rng: random.Random) -> str:
    path = _any_file(folder, rng)
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])
    return f"{path.name} cut short"


def overwrite(folder: Path, other: Path, rng: random.Random) -> str:
    """Zeros, noise, or more bytes at the end."""
    path = _any_file(folder, rng)
    data = path.read_bytes()
    ways = (b"\0" * len(data), rng.randbytes(len(data)), data + b"\0", b"", b"[" * 10**5)
    path.write_bytes(rng.choice(ways))
    return f"{path.name} overwritten"


def remove(folder: Path, other: Path, rng: random.Random) -> str:
    (path := _any_file(folder, rng)).unlink()
    return f"{path.name} removed"


def swap(folder: Path, other: Path, rng: random.Random) -> str:
    """A file of another saved folder, or another file of this one."""
    if rng.random() < 0.5:
        names = [n for n in files_of(folder) if (folder / n).read_bytes() != _read(other / n)]
        shutil.copy(other / (name := rng.choice(names)), folder / name)
        return f"{name} of another folder"
    one, two = (folder / n for n in rng.sample([n for n in files_of(folder) if n != CONFIG], 2))
    contents = two.read_bytes(), one.read_bytes()
    for path, content in zip((one, two), contents, strict=True):
        path.write_bytes(content)
    return f"{one.name} and {two.name} exchanged"


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def extra(folder: Path, other: Path, rng: random.Random) -> str:
    names = ["pytorch_model.bin", "adapter_config.json", "modeling.py", "vocab.txt", "sub/x"]
    path = folder / rng.choice(["encoder", "tokenizer", "base"]) / rng.choice(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.choice([b"{}", b"", b"\x80\x04."]))
    return f"{path.parent.name}/{path.name} added"


def no_file(folder: Path, other: Path, rng: random.Random) -> str:
    """A link, a pipe or a folder in the place of a file."""
    (path := _any_file(folder, rng)).unlink()
    kind = rng.choice(["link", "link", "pipe", "folder"])
    if kind == "link":
        path.symlink_to(to := rng.choice(LINKS) or path.name)
        return f"{path.name} is a link to {to}"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    return f"{path.name} is a {kind}"


def config_value(folder: Path, other: Path, rng: random.Random) -> str:
    """A value of another type or size somewhere in the config; the checksum is as it was."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    where = _change(config, rng, VALUES)
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")
    return f"config: {where}"


def stamped_config(folder: Path, other: Path, rng: random.Random) -> str:
    """A value no saved edits have, with a checksum which is right."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    kind = rng.choice(["type", "neuron", "hparams", "manifest", "base"])
    names: tuple[str, ...] = ("format_version", "hparams", "neuron", "base", "edits", "files")
    part, values = config, VALUES
    if kind == "neuron":
        part, names, values = config["neuron"], ("hidden_size", "layer", "read", "write"), SIZES
    elif kind == "hparams":
        part, values = config["hparams"], SIZES[:4]
        names = tuple(n for n, v in part.items() if type(v) is int and "seed" not in n)
    elif kind == "manifest":
        part, values = config["files"], ({"sha256": "0" * 64, "size": 1}, *VALUES)
        names = ("../x", "/etc/passwd", "a\\b", "C:x", "", ".", "edits.jsonl/", "x" * 5000, "\0")
        names += ("\ud800", "edits.jsonl/x", "a\nb", CONFIG)
    elif kind == "base":
        part, names = config["base"], ("name", "dtype", "fingerprint", "revision")
        values = tuple(v for v in VALUES if v not in ("x", "", None))  # a name is only a name
        values = (*values, {"x": [1.0]}) if rng.random() < 0.9 else ({"lm_head.weight": ["x"]},)
    where = _set(part, rng.choice(names), rng.choice(values))
    (folder / CONFIG).write_text(json.dumps({**config, "checksum": checksum(config)}), "utf-8")
    return f"stamped config: {kind} {where}"


def stamped_json(folder: Path, other: Path, rng: random.Random) -> str:
    """Another type or size somewhere in the encoder's or the tokenizer's JSON; a right checksum."""
    names = [n for n in files_of(folder) if n.endswith(".json") and n != CONFIG]
    path = folder / (name := rng.choice(names))
    content = json.loads(path.read_text("utf-8"))
    where = _change(content, rng, (*VALUES, *SIZES))
    path.write_text(json.dumps(content), "utf-8")
    stamp(folder)
    return f"stamped {name}: {where}"


def stamped_edits(folder: Path, other: Path, rng: random.Random) -> str:
    path = folder / "edits.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1]
    row = json.loads(lines[0])
    odd = json.dumps({**row, rng.choice(list(row)): rng.choice((1, [1], {}, True))})
    changes: Iterable[list[str]] = (
        lines[1:],
        [*lines, lines[0]],
        [rng.choice(["{", "[]", "1", "null", "[" * 10**5, '{"prompt": "a"}', odd]), *lines[1:]],
    )
    path.write_text("\n".join(rng.choice(list(changes))) + "\n", "utf-8")
    stamp(folder)
    return "stamped edits"


def stamped_header(folder: Path, other: Path, rng: random.Random) -> str:
    """An impossible header of safetensors."""
    path = folder / f"{rng.choice(TENSORS)}.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    changes: list[tuple[str, Any]] = [
        ("shape", [2**40, 2**20]),
        ("shape", [-1]),
        ("shape", []),
        ("data_offsets", [0, 2**62]),
        ("data_offsets", [0, 3]),
        ("dtype", "F64"),
        ("dtype", "X"),
    ]
    key, value = rng.choice(changes)
    header[name][key] = value
    raw = rng.choice([json.dumps(header).encode()] * 4 + [b'{"a":' * 50_000])
    raw += b" " * (-len(raw) % 8)
    size = rng.choice([len(raw)] * 4 + [2**62, 2**64 - 1, 0])
    path.write_bytes(struct.pack("<Q", size) + raw + data[8 + length :])
    stamp(folder)
    return f"stamped {path.name}: {key} {value}, {size} bytes of header"


def stamped_nan(folder: Path, other: Path, rng: random.Random) -> str:
    path = folder / f"{rng.choice(TENSORS[1:])}.safetensors"
    tensors = load_file(path)
    name = rng.choice([n for n, t in tensors.items() if t.is_floating_point() and t.numel()])
    flat = tensors[name].flatten().clone()
    flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf")])
    tensors[name] = flat.view_as(tensors[name])
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, {"format": "pt"})
    stamp(folder)
    return f"stamped {path.name}: {name} is not finite"


def _change(content: Any, rng: random.Random, values: Iterable[Any]) -> str:
    """Put one of the values at a random place of nested JSON."""
    while True:
        keys: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        inner = content[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            return _set(content, key, rng.choice(list(values)))
        content = inner


def _set(content: Any, key: Any, value: Any) -> str:
    content[key] = value
    return f"{str(key)[:60]!r} = {str(value)[:40]!r}"


DAMAGES: dict[Damage, int] = {
    flip: 8,
    truncate: 2,
    overwrite: 2,
    remove: 1,
    swap: 2,
    extra: 1,
    no_file: 2,
    config_value: 3,
    stamped_config: 4,
    stamped_json: 3,
    stamped_edits: 1,
    stamped_header: 2,
    stamped_nan: 1,
}  # damage -> how often, relatively
