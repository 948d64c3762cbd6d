"""Text files which are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

_NUMBERS = re.compile(r"\[\n[-+\d\s.,eE]+\]")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, making the folders above; an interruption leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people to read: an entry per line, but lists of numbers on one."""
    text = json.dumps(value, indent=1)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found.group()[1:-1].split())}]", text)
    write_text(path, f"{text}\n")


def read_json(path: Path, again: str) -> Any:
    """What `write_json` wrote, or None where there is no file.

    Raises:
        ValueError: the file is damaged; to delete it makes the caller do `again` what it is of.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to {again} again") from error
