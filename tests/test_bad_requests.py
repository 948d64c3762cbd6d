"""Files of edits that are broken on purpose: refused in one sentence, or read exactly as given."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meg_editor.config.unicode_text import bad_character, canonical_text, has_visible_character
from meg_editor.requests import files
from meg_editor.requests.files import read_requests
from meg_editor.requests.request import EditRequest, RequestError, merge_requests

Row = dict[str, Any]
FIELDS = ("prompt", "target_new", "subject")
SUFFIXES = (".json", ".jsonl", ".csv")
UNUSABLE = "\0\x01\x07\x08\x0e\x1b\x1f\x7f\x80\x84\x86\x9b\ufeff\ud800\udfff"
UNSEEN = " \t\n\u00a0\u3000\u200b\u200c\u200d\u200e\u202e\u2060\u00ad\ufeff\ufe0f\u3164\u2800\0\x1b"
BREAKS = "\n\t\x0b\x0c\x85\u2028\u2029"


def good_rows(rng: random.Random, count: int = 4) -> list[Row]:
    """Facts with accents, joiners, right-to-left text, emoji and quotes."""
    lands = [
        "Café",
        "نمی\u200cدانم",
        "क्\u200dष",
        "\U0001f469\u200d\U0001f680",
        'a "b"',
        "l|m",
        "x, y",
    ]
    return [
        {
            "prompt": f"The capital of {rng.choice(lands)} {number} is",
            "target_new": f"{rng.choice(lands)}{rng.choice(BREAKS)}  town {rng.randrange(99)}",
            "subject": f"{number}",
        }
        for number in rng.sample(range(10**6), count)
    ]


def encoded(rows: list[Row], suffix: str) -> bytes:
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode("utf-8", "surrogatepass")


def refused(path: Path, *words: str) -> str:
    """The message of the refusal: one short line, with the file's name and `words`."""
    with pytest.raises(RequestError) as caught:
        read_requests(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 500 and message.isprintable()
    for word in (path.name, *words):
        assert word in message
    return message


def insert(text: str, character: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(text))  # white space around a text is cut
    return text[:place] + character + text[place:]


# ------------------------------------------------------------------------------ one bad thing


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("seed", range(40))
def test_an_unusable_character_is_named_with_its_field(
    tmp_path: Path, suffix: str, seed: int
) -> None:
    rng = random.Random(seed)
    rows, number = good_rows(rng), rng.randrange(4)
    field, character = rng.choice(FIELDS), UNUSABLE[seed % len(UNUSABLE)]
    rows[number][field] = insert(f"{rows[number][field]}.", character, rng)
    (path := tmp_path / f"f{suffix}").write_bytes(encoded(rows, suffix))
    message = refused(path, "line" if suffix != ".json" else f"entry {number + 1}")
    if character != "\0" and not (suffix == ".csv" and "\ud800" <= character <= "\udfff"):
        assert f"'{field}' holds U+{ord(character):04X}" in message


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("seed", range(30))
def test_texts_without_a_visible_character_are_empty(
    tmp_path: Path, suffix: str, seed: int
) -> None:
    rng = random.Random(seed)
    rows, number = good_rows(rng), rng.randrange(4)
    text = "".join(rng.choices(UNSEEN, k=rng.randrange(1, 5)))
    field = rng.choice((*FIELDS, "rephrases", "locality_prompts"))
    rows[number][field] = text if field in FIELDS else ["Which?", text]
    (path := tmp_path / f"f{suffix}").write_bytes(encoded(rows, suffix))
    refused(path, f"{'entry' if suffix == '.json' else 'line'} {number + 1}", f"'{field}' is empty")


def disguised(text: str, rng: random.Random) -> str:
    """`text` in another spelling that looks the same."""
    text = unicodedata.normalize(rng.choice(["NFC", "NFD"]), text)
    hidden = rng.choice("\u200b\u00ad\u2060")
    words = [insert(word, hidden, rng) if len(word) > 1 else word for word in text.split(" ")]
    return rng.choice(["", " ", "\n"]) + rng.choice([" ", "  ", "\u00a0"]).join(words)


@pytest.mark.parametrize("seed", range(40))
def test_prompts_that_look_the_same_are_the_same(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = good_rows(rng)
    twin = dict(rng.choice(rows), rephrases=["Which?"])
    twin["prompt"] = disguised(twin["prompt"], rng)
    twin["target_new"] = unicodedata.normalize("NFD", twin["target_new"])
    suffix = rng.choice((".json", ".jsonl"))
    (path := tmp_path / f"f{suffix}").write_bytes(encoded([*rows, twin], suffix))
    merged = read_requests(path)
    assert merged.duplicates == 1
    assert [r.prompt for r in merged.requests] == [row["prompt"] for row in rows]  # as given
    assert [r.target_new for r in merged.requests] == [row["target_new"] for row in rows]
    place = "entry" if suffix == ".json" else "line"
    path.write_bytes(encoded([*rows, {**twin, "target_new": "Elsewhere"}], suffix))
    refused(path, f"{place} 5", f"{place} ", "different answers to the same prompt", "'Elsewhere'")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", "paris"),
        ("x\u00b2", "x2"),  # NFKC
        ("\ufb01sh", "fish"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e007f", "\U0001f3f4\U000e0067\U000e007f"),
    ],
)
def test_case_compatibility_and_flags_count(one: str, other: str) -> None:
    rows = [{"prompt": f"The {text} is", "target_new": text} for text in (one, other)]
    assert merge_requests(rows).duplicates == 0


def test_canonical_text_is_stable() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(
            chr(rng.choice((rng.randrange(0xD800), rng.randrange(768)))) for _ in "12345"
        )
        once = canonical_text(text)
        assert canonical_text(once) == once == canonical_text(unicodedata.normalize("NFD", text))


def test_joiners_and_line_breaks_are_no_flaws() -> None:
    for text in ("می\u200cخواهم", "\U0001f469\u200d\U0001f680", *(f"a{mark}b" for mark in BREAKS)):
        assert bad_character(text) is None and has_visible_character(text)


def test_code_as_subject_is_filled_in_once() -> None:
    request = EditRequest("The method main(){} returns", "0", "main(){}")
    assert merge_requests([request]).requests == (request,)


# ------------------------------------------------------------------------------ files

_ROW = '{"prompt": "P is", "target_new": "T"}'
DEEP, _LONG = 200_000, ("a" * 9999, "b" * 9999)
BROKEN: dict[str, tuple[str, str, list[str]]] = {
    "key twice": (".json", f'[{_ROW},\n{_ROW[:-1]}, "prompt": "Q"}}]', ["line 2", "'prompt'"]),
    "key twice inside": (".json", '[{"x": [{"a": 1,\n "a": 2}]}]', ["line 2", "'a' is given"]),
    "escaped key twice": (".jsonl", f'{_ROW}\n{{"a": 1, "\\u0061": 2}}', ["line 2", "'a'"]),
    "edits twice": (".json", f'{{"edits": [{_ROW}], "edits": []}}', ["line 1", "'edits'"]),
    "nan": (".json", f'[{_ROW},\n{{"prompt": "NaN", "target_new": NaN}}]', ["line 2", "NaN"]),
    "infinity": (".jsonl", f'{_ROW}\n{{"prompt": "P", "x": -Infinity}}', ["line 2", "-Infinity"]),
    "digits": (".json", f'[{_ROW},\n{{"prompt": {"9" * 5000}}}]', ["line 2", "5000 digits"]),
    "lists": (".json", f"[{_ROW},\n{'[' * DEEP}{']' * DEEP}]", ["line 2", "nested deeper"]),
    "open lists": (".json", "[\n" * DEEP, ["line ", "nested deeper"]),
    "objects": (".json", '{"a":' * DEEP + "1" + "}" * DEEP, ["line 1", "nested deeper"]),
    "deep field": (".jsonl", f'{_ROW}\n{{"x": {"[" * DEEP}{"]" * DEEP}}}', ["line 2", "nested"]),
    "nul in json": (".json", f"[{_ROW},\n\0{_ROW}]", ["line 2", "NUL"]),
    "nul in csv": (".csv", "prompt,target_new,x\nP,T,a\nQ,U,\0\n", ["line 3", "NUL"]),
    "two marks": (".csv", "\ufeff\ufeffprompt,target_new\nP,T\n", ["line 1", "byte order marks"]),
    "mark inside": (".csv", "prompt,target_new\nP,T\n\ufeffQ,U\n", ["line 3", "U+FEFF"]),
    "long cell": (".csv", f"prompt,target_new\n{'x' * 200_000},T\n", ["line 2", "not CSV"]),
    "many columns": (".csv", ",".join(["x"] * 9999) + "\n1\n", ["line 1", "'prompt', got 0"]),
    "long column": (".csv", f"prompt,target_new,{'x' * 9999},{'x' * 9999}\n", ["line 1", "got 2"]),
    "many fields": (".json", json.dumps([dict.fromkeys(map(str, range(9999)))]), ["entry 1"]),
    "long field": (".json", json.dumps([{"promt" * 9999: 1}]), ["entry 1", "is missing"]),
    "wide value": (".json", json.dumps([{"prompt": [["x" * 99] * 99] * 99}]), ["entry 1"]),
    "long texts": (".json", json.dumps([{"prompt": "p" * 9999, "target_new": x} for x in _LONG]),
                   ["entry 1", "entry 2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    suffix, text, words = BROKEN[name]
    (path := tmp_path / f"f{suffix}").write_bytes(text.encode())
    refused(path, *words)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_encodings_are_refused(tmp_path: Path, encoding: str, suffix: str) -> None:
    rows = [{"prompt": "The capital of Perú is", "target_new": "Lima"}]
    text = (
        json.dumps(rows, ensure_ascii=False) if suffix != ".csv" else encoded(rows, suffix).decode()
    )
    (path := tmp_path / f"f{suffix}").write_bytes(text.encode(encoding))
    refused(path, "line", "UTF-8")


def test_pipes_and_devices_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.csv")
    refused(tmp_path / "f.csv", "expected a regular file, got a pipe")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    refused(tmp_path / "zero.json", "expected a regular file, got a device")


def test_huge_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (path := tmp_path / "f.json").open("wb") as file:
        file.truncate(2**30 + 1)  # without any block on the disk
    refused(path, "expected at most 1,073,741,824 bytes")
    monkeypatch.setattr(files, "_MAX_FILE", 10)
    path.write_text(f"[{_ROW}]")
    refused(path, "at most 10 bytes")


def test_file_names_of_several_lines_give_one_line(tmp_path: Path) -> None:
    (path := tmp_path / "a\nb.json").write_text("[1]")
    with pytest.raises(RequestError, match=r"^a\\nb.json, entry 1: expected an object"):
        read_requests(path)


# ------------------------------------------------------------------------------ at random

Damage = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def drop(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data))]


def swap(data: bytearray, rng: random.Random) -> None:
    start, end = sorted(rng.sample(range(len(data)), 2))
    data[start:end] = reversed(data[start:end])


def noise(data: bytearray, rng: random.Random) -> None:
    data[:] = rng.randbytes(rng.choice([1, 30, 3000]))


def structure(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = rng.choice([b'"', b"{", b"]", b",", b"\\", b"\n", b"\r", b"\\ud800", b"|"])


DAMAGES: list[Damage] = [flip, cut, drop, swap, noise, structure]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_refused_or_gives_rows_that_can_be_saved(
    tmp_path: Path, suffix: str, damage: Damage
) -> None:
    rng = random.Random(f"{suffix}{damage.__name__}")
    for _ in range(120):
        check_damaged(tmp_path / f"f{suffix}", damage, rng)


def check_damaged(path: Path, damage: Damage, rng: random.Random) -> None:
    """Damage a good file: it is refused, or its rows can be saved."""
    data = bytearray(encoded(good_rows(rng), path.suffix))
    damage(data, rng)
    path.write_bytes(data)
    try:
        merged = read_requests(path)
    except RequestError as error:
        message = str(error)
        assert path.name in message or "no edit requests" in message
        assert len(message.splitlines()) == 1 and len(message) < 500
    else:
        for request in merged.requests:
            request.prompt.encode(), request.target_new.encode()
            assert EditRequest.from_mapping({"subject": None, **_fields(request)}) == request


def _fields(request: EditRequest) -> dict[str, Any]:
    return {name: value for name, value in vars(request).items() if value}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_good_files_are_read_as_given(tmp_path: Path, suffix: str) -> None:
    rng = random.Random(5)
    for _ in range(100):
        rows = good_rows(rng)
        data = encoded(rows, suffix)
        (path := tmp_path / f"f{suffix}").write_bytes(rng.choice([b"", b"\xef\xbb\xbf"]) + data)
        assert read_requests(path).requests == tuple(EditRequest(**row) for row in rows)
