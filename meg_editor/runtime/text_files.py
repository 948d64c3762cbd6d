"""Atomic writes of text and JSON files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meg_editor.runtime.files import check_regular, replacing

_NUMBERS = re.compile(r"\[\n[-+\d\s.,eE]+\]")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; creates parent folders."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, with lists of numbers on one line and null for NaN; atomically.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "scores.json"
        >>> write_json(path, {"scores": [1, 2, 3]})
        >>> print(path.read_text(), end="")
        {
         "scores": [1, 2, 3]
        }
    """
    text = json.dumps(json_types(value), indent=1)
    text = _NUMBERS.sub(lambda match: f"[{' '.join(match.group()[1:-1].split())}]", text)
    write_text(path, f"{text}\n")


def json_types(value: Any) -> Any:
    """JSON types of dataclasses, mappings and sequences; None for NaN, "inf" for infinity.

    Example:
        >>> json_types({"a": [float("nan"), 1.0], "b": float("inf")})
        {'a': [None, 1.0], 'b': 'inf'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: json_types(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_types(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def read_json(path: Path, again: str) -> Any:
    """Value of a JSON file, or None if there is no file.

    Args:
        again: verb for the error message "delete it to ... again", such as "run".

    Raises:
        ValueError: the file is damaged.
        OSError: it is no file.

    Example:
        >>> read_json(Path("no such file.json"), "run") is None
        True
    """
    if check_regular(path, missing_ok=True) is None:
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to {again} again") from error
