"""Prompt forms from a JSON file; every error names the file, the entry and the field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from meg_editor.config.input_files import read_regular_file, short_repr, shown_path
from meg_editor.data.loaders.records import Record
from meg_editor.data.prompt_forms import VARIANTS, Expectation, PromptForm, Turns
from meg_editor.lm.chat import ChatEnd
from meg_editor.requests.json_text import parse_json
from meg_editor.requests.request import RequestError

_MAX_FILE = 2**26  # bytes
_FIELDS = ("p", "q", "s", "other", "a", "b")  # which facts have
_FIELD = re.compile(r"\{\s*(\w+)\s*(?:!\s*(\w*)\s*)?\}")  # other braces are text, such as JSON


def load_forms(path: str | Path) -> list[PromptForm]:
    """The forms of a file: a JSON list of objects.

    Each has `id`, `kind`, `expect` and a `template`, or in its place a `chat` with `turns`, a list
    of [role, text], and a `mode`. Other entries, such as `split`, are ignored.

    Raises:
        FileNotFoundError, IsADirectoryError: no file at `path`.
        RequestError: not UTF-8, not JSON, or an entry is not as expected.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "forms.json"
        >>> text = '[{"id": "a", "kind": "prefix", "expect": "edit", "template": "Tell me: {q}"}]'
        >>> _ = path.write_text(text)
        >>> load_forms(path)[0].filled({"q": "Who wrote Emma?"})
        'Tell me: Who wrote Emma?'
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{shown_path(path)} is a directory: expected a file of forms")
    if not path.exists():
        raise FileNotFoundError(f"{shown_path(path)}: no such file: expected a JSON list of forms")
    name = shown_path(Path(path.name))
    try:
        text = read_regular_file(path, _MAX_FILE, name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: not UTF-8: {error.reason}; save the file as UTF-8") from error
    except ValueError as error:
        raise RequestError(str(error)) from error
    rows = parse_json(text, name)
    if not isinstance(rows, list) or not rows:
        raise RequestError(f"{name}: expected a list of forms, got {short_repr(rows)}")
    return [_form(row, f"{name}, entry {number}") for number, row in enumerate(rows, 1)]


def _form(row: Any, where: str) -> PromptForm:
    if not isinstance(row, dict):
        raise RequestError(f"{where}: expected an object with fields, got {short_repr(row)}")
    record = Record(row, where)
    form, kind = record.text("id"), record.text("kind")
    expect = _choice(record, "expect", get_args(Expectation))
    if "chat" in record:
        chat = record.record("chat")
        mode = _choice(chat, "mode", get_args(ChatEnd))
        return PromptForm(form, kind, expect, "", _turns(chat, mode), mode)
    record.text("template")  # not blank; its ends are kept as they are
    return PromptForm(form, kind, expect, _checked(row["template"], record, "template"))


def _choice(record: Record, name: str, known: tuple[str, ...]) -> Any:
    value = record.text(name)
    if value not in known:
        raise record.error(name, f"one of {', '.join(known)}", value)
    return value


def _turns(chat: Record, mode: ChatEnd) -> Turns:
    rows = chat.row.get("turns")
    if not isinstance(rows, list) or not rows or not all(map(_is_turn, rows)):
        raise chat.error("turns", 'a list such as [["user", "{q}"]]', rows)
    if mode == "continue" and rows[-1][0] != "assistant":
        raise chat.error("turns", "an assistant's turn at the end, to continue", rows[-1])
    return tuple((role, _checked(text, chat, "turns")) for role, text in rows)


def _is_turn(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) for text in row)


def _checked(template: str, record: Record, name: str) -> str:
    """The template; every field in it is known, spelt without blanks."""
    for match in _FIELD.finditer(template):
        field, variant = match.groups()
        exact = field if variant is None else f"{field}!{variant}"
        known = field in _FIELDS and (variant is None or variant in VARIANTS)
        if not known or match.group() != f"{{{exact}}}":
            fields = ", ".join(f"{{{one}}}" for one in _FIELDS)
            variants = ", ".join(f"!{one}" for one in VARIANTS)
            raise record.error(name, f"fields {fields}, variants {variants}", match.group())
    return template
