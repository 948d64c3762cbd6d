"""Edit requests from JSON, JSONL and CSV files; every error names the file, the line, the field."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from meg_editor.config.input_files import (
    read_regular_file,
    short_names,
    short_repr,
    shown_path,
)
from meg_editor.requests.json_text import parse_json
from meg_editor.requests.request import (
    REQUIRED,
    SPELLINGS,
    MergedRequests,
    RequestError,
    merge_requests,
)

_FIELDS = {**SPELLINGS, "locality": ()}  # of EasyEdit, with its prompts inside
# Of other files, and not misspelt.
_FOREIGN = frozenset(["object", "object_id", "subject_id", "local", "locale"])
_MAX_FILE = 2**30  # bytes


def read_requests(path: str | Path) -> MergedRequests:
    """Read a file of edits: UTF-8, with or without BOM; the suffix gives the format.

    `.json` holds a list of objects or `{"edits": [...]}`, `.jsonl` one object per line, `.csv` a
    header line with column names. The fields are those of `EditRequest`; in CSV "|" separates the
    texts of `rephrases` and of `locality_prompts`. Other fields are ignored, for the files of
    EasyEdit and CounterFact have many, unless one looks like a misspelt field which the row lacks.
    Lines and entries are counted from 1.

    Returns:
        The requests, one per prompt, and the number of repeated rows.

    Raises:
        FileNotFoundError, IsADirectoryError: no file at `path`.
        RequestError: a pipe or device, more than 1 GiB, unknown suffix, bad UTF-8, bad format (a
            key given twice too), or rows `merge_requests` refuses.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "facts.csv"
        >>> _ = path.write_text("prompt,target_new\\nThe capital of France is,Lima\\n")
        >>> read_requests(path).requests[0].target_new
        'Lima'
    """
    rows, places = [], []
    for where, row in read_rows(path):
        rows.append(_known_fields(row, where))
        places.append(where)
    return merge_requests(rows, places)


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file as pairs: location ("facts.json, entry 7", counted from 1) and fields.

    Raises:
        FileNotFoundError, IsADirectoryError: no file at `path`.
        RequestError: a pipe or device, more than 1 GiB, unknown suffix, bad UTF-8, bad format, a
            row without fields, or no rows.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "facts.jsonl"
        >>> _ = path.write_text('{"prompt": "The capital of France is", "target_new": "Lima"}')
        >>> [location for location, fields in read_rows(path)]
        ['facts.jsonl, line 1']
    """
    path = Path(path).expanduser()
    known, shown = ", ".join(_FORMATS), shown_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{shown} is a directory: expected a file of edits ({known})")
    if not path.exists():
        raise FileNotFoundError(f"{shown}: no such file: expected a file of edits ({known})")
    name, suffix = shown_path(Path(path.name)), path.suffix.lower()
    if suffix not in _FORMATS:
        raise RequestError(
            f"{name}: unknown suffix {short_repr(suffix)}: expected one of {known}; rename it"
        )
    try:
        data = read_regular_file(path, _MAX_FILE, name)
    except ValueError as error:
        raise RequestError(str(error)) from error
    if not (text := _decode(data, name)).strip():
        raise RequestError(f"{name}: the file is empty: expected at least one edit")
    empty = True
    for where, row in _FORMATS[suffix](text, name):
        if not isinstance(row, dict):
            raise RequestError(f"{where}: expected an object with fields, got {short_repr(row)}")
        empty = False
        yield where, row
    if empty:
        raise RequestError(f"{name}: holds no edits: expected at least one")


def _decode(data: bytes, name: str) -> str:
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.startswith(codecs.BOM_UTF8):
        raise RequestError(f"{name}, line 1: two byte order marks: expected at most one")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line, bad = data.count(b"\n", 0, error.start) + 1, data[error.start]
        message = f"{name}, line {line}: byte 0x{bad:02x} is not UTF-8; save the file as UTF-8"
        raise RequestError(message) from error
    if (position := text.find("\0")) >= 0:
        line = text.count("\n", 0, position) + 1
        raise RequestError(
            f"{name}, line {line}: U+0000 (NUL) in the file; save it as UTF-8, not as UTF-16, "
            "and without NUL"
        )
    return text


def _json_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    content = parse_json(text, name)
    content = content.get("edits", content) if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise RequestError(
            f'{name}: expected a list or {{"edits": [...]}}, got {short_repr(content)}'
        )
    for number, row in enumerate(content, 1):
        yield f"{name}, entry {number}", row


def _jsonl_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would cut at U+2028
        if line.strip():
            yield f"{name}, line {number}", parse_json(line, name, number)


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    where = f"{name}, line 1"
    try:
        for cells in reader:
            if cells and not columns:
                columns = _columns(cells, where)
            elif cells and len(cells) != len(columns):
                raise RequestError(
                    f"{where}: expected {len(columns)} cells ({short_names(columns)}), got "
                    f"{len(cells)}; put texts with commas in double quotes"
                )
            elif cells:
                row: dict[str, Any] = dict(zip(columns, map(str.strip, cells), strict=True))
                for field in {"rephrases", "locality_prompts"} & row.keys():
                    row[field] = [part for part in row[field].split("|") if part.strip()]
                yield where, row
            where = f"{name}, line {reader.line_num + 1}"
    except csv.Error as error:
        raise RequestError(f"{where}: not CSV: {error}") from error


def _columns(cells: list[str], where: str) -> list[str]:
    columns = [cell.strip() for cell in cells]
    _known_fields(dict.fromkeys(columns), where)  # a misspelt column
    for field in (*REQUIRED, *filter(None, columns)):
        if columns.count(field) != 1:
            raise RequestError(
                f"{where}: expected one column {short_repr(field)}, got {columns.count(field)}; "
                "the first line names the columns, with commas between: prompt,target_new,subject"
            )
    return columns


def _known_fields(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of `row` in our spelling, without any others; near misses are refused."""
    every = {spelling for field, others in _FIELDS.items() for spelling in (field, *others)}
    unknown = {
        str(key).strip().lower().replace(" ", "_"): key
        for key in row
        if key not in every | _FOREIGN
    }
    fields = {}
    for field, others in _FIELDS.items():
        given = [spelling for spelling in (field, *others) if spelling in row]
        if given:
            fields[field] = next((row[s] for s in given if row[s]), row[given[0]])
            continue
        for plain, key in unknown.items():
            if close := get_close_matches(plain, (field, *others), n=1, cutoff=0.7):
                raise RequestError(
                    f"{where}: unknown field {short_repr(key)}; did you mean {close[0]!r}?"
                )
        if field in REQUIRED:
            return row  # merge_requests names the missing field and those present
    return fields


_FORMATS = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
