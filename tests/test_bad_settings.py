"""Settings that are broken on purpose: refused in one sentence that names file and place."""

from __future__ import annotations

import dataclasses
import os
import random
import time
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from meg_editor.baselines import BASELINES
from meg_editor.config.flat_yaml import parse_flat_yaml, parse_yaml_value
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.input_files import short_names, short_repr
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.config.settings import FlatHyperParams, HParamsError

PRESET = Path(__file__).parents[1] / "meg_editor" / "config" / "presets" / "default.yaml"
CLASSES = [MeGHyperParams, RuntimeConfig, *(method.settings for method in BASELINES.values())]
HINTS = get_type_hints(MeGHyperParams)
FLOATS = [name for name, hint in HINTS.items() if hint is float]
INTS = [name for name, hint in HINTS.items() if hint is int]


def write(folder: Path, content: str | bytes) -> Path:
    (path := folder / "mine.yaml").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    return path


def refused(path: Path, *words: str) -> str:
    """The message of the refusal: one short line, with the file's name and `words`, and soon."""
    start = time.process_time()
    with pytest.raises(HParamsError) as caught:
        MeGHyperParams.from_hparams(path)
    message = str(caught.value)
    assert time.process_time() - start < 5
    assert message.startswith(str(path)) and len(message.splitlines()) == 1
    assert len(message.removeprefix(str(path))) < 400 and message.isprintable()
    for word in words:
        assert word in message
    return message


def _bomb(opening: str, closing: str, name: str = "{name}: ") -> str:
    """Billion laughs: every level names the level below it nine times."""
    levels = [f"a0: &a0 {opening}x, y{closing}"]
    for level in range(1, 12):
        names = ", ".join([f"*a{level - 1}"] * 9)
        levels.append(f"a{level}: &a{level} {name.format(name='<<')}{opening}{names}{closing}")
    return "\n".join(levels)


BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "lists of aliases": (_bomb("[", "]", ""), ["line 1", "anchor &a0"]),
    "merge keys of aliases": (_bomb("{", "}", ""), ["line 1", "anchor &a0"]),
    "aliases in a value": ("layers: [&a [x, x], &b [*a, *a], [*b, *b]]", ["line 1", "anchor &a"]),
    "recursive list": ("seed: 1\nlayers: &a [*a]", ["line 2", "anchor &a"]),
    "recursive mapping": ("&a {seed: *a}", ["line 1", "anchor &a"]),
    "recursive key": ("? &a [*a]\n: 1", ["line 1", "anchor &a"]),
    "unknown alias": ("seed: *x", ["line 1", "alias *x"]),
    "long anchor": (f"seed: &{'x' * 9999} 1", ["line 1", "anchor &xxx"]),
    "merge key": ("<<: {seed: 1}", ["line 1", "'<<'"]),
    "deep lists": ("layers: " + "[" * 20_000 + "]" * 20_000, ["line 1", "'layers' holds a list"]),
    "deep mappings": ("seed: " + "{a: " * 5000, ["line 1", "'seed' holds a mapping"]),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(300)), ["line 2", "'a' holds"]),
    "list in a list": ("seed: 1\nlayers: [[1]]", ["line 2", "'layers' holds a list"]),
    "name twice": ("seed: 1\nlayers: [2]\nseed: 2", ["line 3", "'seed' is set twice", "line 1"]),
    "quoted name twice": ("seed: 1\n'seed': 2", ["line 2", "'seed' is set twice"]),
    "list as name": ("[1, 2]: 1", ["line 1", "expected the name of a setting, got a list"]),
    "mapping as name": ("? {a: 1}\n: 1", ["line 1", "got a mapping"]),
    "number as name": ("seed: 1\n2.5: 1", ["line 2", "name of a setting, got '2.5'"]),
    "null as name": ("null: 1", ["line 1", "name of a setting, got 'null'"]),
    "empty name": (": 1", ["line 1", "not YAML"]),
    "bool as name": ("yes: 1", ["line 1", "name of a setting, got 'yes'"]),
    "date as name": ("2020-01-01: 1", ["line 1", "special date"]),
    "long name": (f"? {'x' * 9999}\n: 1", ["unknown hyper-parameter 'xxx"]),
    "two documents": ("seed: 1\n---\nseed: 2", ["line 2", "second YAML document"]),
    "empty documents": ("---\n---\n", ["expected a flat YAML mapping"]),
    "directive": ("%FOO bar\n---\nseed: 1", ["directives are not read"]),
    "version": ("%YAML 9.9\n---\nseed: 1", ["line 1", "not YAML"]),
    "long digits": (f"seed: {'9' * 5000}", ["line 1", "a number of 5000 digits"]),
    "long text": (f"seed: {'x' * 9999}", ["seed: expected int, got 'xxx"]),
    "wide list": (f"layers: [{'x, ' * 9999}x]", ["layers: expected list[int], got ['x'"]),
    "long choice": (f"gate: {'x' * 9999}", ["gate: expected one of"]),
    "long template": (f"prompt_template: {'x' * 9999}", ["prompt_template: expected exactly one"]),
    "nul": ("seed: 1\nmodel_name: a\0b", ["line 2", "U+0000"]),
    "escaped nul": ('model_name: "a\\0b"', ["model_name: expected plain text, got U+0000 (NUL)"]),
    "escaped escape": ('prompt_template: "{} \\e[2J"', ["prompt_template", "U+001B (ESC)"]),
    "latin-1": ("seed: 1\nmodel_name: é".encode("latin-1"), ["0xe9 in line 2", "UTF-8"]),
    "utf-16": ("seed: 1".encode("utf-16"), ["0xff in line 1", "UTF-8"]),
    "syntax": ("seed: 1\na: b: c", ["line 2, column 5", "not YAML"]),
    "tab": ("seed: 1\n\tlayers: [1]", ["line 2", "not YAML"]),
    "open list": ("layers: [1", ["line ", "not YAML"]),
}
TAGS = ("!!int foo", "!!int ''", "!!float x", "!!bool foo", "!!timestamp 2020-99-99", "!!null x")
TAGS += ("!!binary é", "!!str [1]", "!!map [1]", "!!set {a, b}", "!!omap [a: 1]", "!foo 3", "! 3")
TAGS += (
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!python/tuple [1]",
)
# What YAML 1.1 reads as something else than it looks.
SURPRISES = (
    "1:30",
    "1:30.5",
    "010",
    "-017",
    "0x10",
    "0b11",
    "0b_",
    "0x_",
    "1_000",
    "1_0.5",
    ".inf",
)
SIGNS = b"&*!|>%@`{}[]:#'\"?-,<=~\n\t \\0_"
SURPRISES += ("-.inf", ".nan", "2020-01-01", "2020-99-99", "2020-01-01T99:00:00Z", "=")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    content, words = BROKEN[name]
    refused(write(tmp_path, content), *words)


@pytest.mark.parametrize("name", ["seed", "collection_lr", "layers", "model_name", "gate", "fp16"])
@pytest.mark.parametrize("text", [*TAGS, *SURPRISES])
def test_tags_and_special_numbers_are_refused(tmp_path: Path, name: str, text: str) -> None:
    refused(write(tmp_path, f"device: cpu\n{name}: {text}\n"), "line 2", "write ")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    "text", ["'1_0'", "' 0.5 '", "'\u0661'", "'0.5\\n'", "inf", "nan", "1e999", "'0x1p3'", "yes"]
)
def test_only_plain_decimals_are_numbers(tmp_path: Path, name: str, text: str) -> None:
    refused(write(tmp_path, f"{name}: {text}\n"), f"{name}: expected a finite number")


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("text", ["1.0", "1e3", "'5'", "true", "null", "[1]", "five", "''"])
def test_only_integers_are_integers(tmp_path: Path, name: str, text: str) -> None:
    refused(write(tmp_path, f"{name}: {text}\n"), f"{name}: expected int")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "'1e-4'", ".0001", "1.e-4", "0.0001"])
def test_plain_decimals_are_read(text: str) -> None:
    assert MeGHyperParams.from_dict(parse_flat_yaml(f"encoder_lr: {text}")).encoder_lr == 1e-4


def test_quoted_values_are_text() -> None:
    values = parse_flat_yaml("a: '010'\nb: \"1:30\"\nc: |\n  2020-01-01\nd: [x, '1', 1]\ne:\n")
    assert values == {"a": "010", "b": "1:30", "c": "2020-01-01\n", "d": ["x", "1", 1], "e": None}


def test_the_value_of_one_setting() -> None:
    assert parse_yaml_value("") is None
    assert [parse_yaml_value(text) for text in ("3", "yes", "[a, 1.5]")] == [3, True, ["a", 1.5]]
    for text in ("1:30", "&a [*a]", "{a: 1}", "[[1]]", "1\n---\n2", "]"):
        with pytest.raises(ValueError, match="line 1|second"):
            parse_yaml_value(text)


# ------------------------------------------------------------------------------ bounds


def _numbers(settings: type[FlatHyperParams]) -> list[tuple[str, type]]:
    kinds = {name: (hint, *get_args(hint)) for name, hint in get_type_hints(settings).items()}
    names = [entry.name for entry in dataclasses.fields(settings)]
    return [(name, kind) for name in names for kind in (int, float) if kind in kinds[name]]


@pytest.mark.parametrize("settings", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("power", [12, 20, 40, 5000])
def test_every_number_has_bounds(settings: type[FlatHyperParams], power: int) -> None:
    for name, kind in _numbers(settings):
        if name == "layers":
            continue
        for sign in (1, -1):
            value: Any = sign * 10**power
            if name == "seed" and power == 12:
                continue
            if kind is float:
                value = float(value) if power < 300 else sign * 1e300
            with pytest.raises(HParamsError, match=f"^{name}: expected") as caught:
                settings.from_dict({name: value})
            assert len(str(caught.value)) < 200


def test_layers_and_devices_have_bounds() -> None:
    for values in ({"layers": [10**12]}, {"layers": [-(10**5000)]}, {"device": -1}):
        with pytest.raises(HParamsError, match=f"^{next(iter(values))}: expected"):
            MeGHyperParams.from_dict(values)


def test_generous_numbers_are_taken() -> None:
    large = {"seed": 2**63 - 1, "generator_width": 2**16, "collection_contexts": 999}
    large |= {"max_length": 2**20, "batch_size": 2**20, "collection_lr": 1000.0}
    hparams = MeGHyperParams.from_dict(large)
    assert {name: getattr(hparams, name) for name in large} == large


@pytest.mark.parametrize(
    "key", [None, 1, 2.5, True, (1, 2), b"seed", "x" * 10**6, "se\0ed", 10**5000], ids=short_repr
)
def test_odd_keys_are_unknown(key: Any) -> None:
    with pytest.raises(HParamsError, match="unknown hyper-parameter") as caught:
        MeGHyperParams.from_dict({key: 1})
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


# ------------------------------------------------------------------------------ files


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    refused(tmp_path / "mine.yaml", "got a pipe")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "got a pipe")
    with pytest.raises(HParamsError, match="/dev/zero: expected a regular file, got a device"):
        MeGHyperParams.from_hparams("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for folder in (tmp_path, tmp_path / "folder.yaml", Path()):
        with pytest.raises((IsADirectoryError, FileNotFoundError)):
            MeGHyperParams.from_hparams(folder)
    with pytest.raises(HParamsError):
        MeGHyperParams.from_hparams("a\0b")


def test_large_files_are_not_parsed(tmp_path: Path) -> None:
    refused(write(tmp_path, "#" * 2**20), "expected at most 131,072 bytes, got 1,048,576")


# ------------------------------------------------------------------------------ at random


def test_damage_is_refused_or_gives_checked_settings(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(400):
        check_damaged(tmp_path, rng)


def check_damaged(folder: Path, rng: random.Random) -> None:
    """Damage the default preset: it is refused, or gives checked settings."""
    data = bytearray(PRESET.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(data))
        change = rng.randrange(3)
        if change == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[place:place] = bytes(rng.choices(SIGNS, k=rng.randrange(1, 4)))
        else:
            del data[place : place + rng.randrange(1, 30)]
    path = write(folder, bytes(data))
    try:
        hparams = MeGHyperParams.from_hparams(path)
    except HParamsError as error:
        message = str(error)
        assert message.startswith(str(path)) and len(message.removeprefix(str(path))) < 400
        assert len(message.splitlines()) == 1
    else:
        assert MeGHyperParams.from_dict(hparams.to_dict()) == hparams


def test_messages_have_bounds() -> None:
    loop: list[Any] = []
    loop.append(loop)
    wide: Any = "x"
    for _ in range(30):
        wide = [wide] * 9  # 9**30 items, in thirty lists
    for value in (loop, wide, "x" * 10**6, "\n\x1b", {1: wide}, 10**5000, [10**5000], object()):
        assert len(short_repr(value)) <= 80 and short_repr(value).isprintable()
    assert len(short_names(map(str, range(10**6)))) < 100
    assert len(short_names(["x" * 10**6] * 99)) < 400
