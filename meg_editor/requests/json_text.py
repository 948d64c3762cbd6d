"""Strict JSON: no repeated keys, no NaN, no endless numbers or nesting; errors say where."""

from __future__ import annotations

import json
import re
from typing import Any

from meg_editor.config.input_files import short_repr
from meg_editor.requests.request import RequestError

_MAX_DIGITS, _MAX_DEPTH = 4300, 100  # of an error; what json itself reads is not refused for depth
# A string, as a key with its colon; a bracket; or a number or word.
_TOKEN = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?|[{}\[\]]|[^\s{}\[\],:"]+', re.DOTALL)
_CONSTANTS = ("NaN", "Infinity", "-Infinity")


class _NotStrict(ValueError):
    """JSON of Python which is not JSON; `_flaw` finds it again with its place."""


def parse_json(text: str, name: str, first_line: int = 1) -> Any:
    """The value of a JSON text.

    Args:
        name: the file, for errors.
        first_line: of the file, where the text begins.

    Raises:
        RequestError: not JSON, a key given twice in an object, NaN or infinity, an integer of more
            than 4300 digits, or nesting too deep for the parser. It names file and line.

    Example:
        >>> parse_json('{"prompt": "a",\\n"prompt": "b"}', "facts.json")
        Traceback (most recent call last):
        ...
        meg_editor.requests.request.RequestError: facts.json, line 2: key 'prompt' is given twice in
        one object; keep one
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        where = f"{name}, line {first_line + error.lineno - 1}, column {error.colno}"
        hint = "; one object per line: name it .jsonl" if error.msg == "Extra data" else ""
        raise RequestError(f"{where}: not JSON: {error.msg}{hint}") from error
    except (ValueError, RecursionError) as error:
        position, flaw = _flaw(text)
        line = first_line + text.count("\n", 0, position)
        raise RequestError(f"{name}, line {line}: {flaw}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _NotStrict
    return content


def _refuse(constant: str) -> Any:
    raise _NotStrict


def _flaw(text: str) -> tuple[int, str]:
    """Position and description of the first flaw of a text that `json` did not take."""
    keys: list[set[str]] = []  # of the objects and lists around a token
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in ("{", "["):
            keys.append(set())
            if len(keys) > _MAX_DEPTH:
                return token.start(), f"nested deeper than {_MAX_DEPTH} levels; expected flat rows"
        elif word in ("}", "]"):
            keys.pop()  # balanced up to the flaw, for json has read that far
        elif token.group(2):
            key = json.loads(f'"{token.group(1)}"')
            if key in keys[-1]:
                return (
                    token.start(),
                    f"key {short_repr(key)} is given twice in one object; keep one",
                )
            keys[-1].add(key)
        elif word in _CONSTANTS:
            return token.start(), f"{word} is not JSON: expected text"
        elif len(word) > _MAX_DIGITS and not word.startswith('"'):
            return token.start(), f"a number of {len(word)} digits: expected text"
    return 0, "not readable as JSON: nested too deep, or a number too long"
