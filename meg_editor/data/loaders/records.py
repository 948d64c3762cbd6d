"""Checked access to the entries of a data file: every error names file, entry and field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meg_editor.config.input_files import short_names, type_and_repr
from meg_editor.requests.files import read_rows
from meg_editor.requests.request import RequestError


class Record:
    """One object of a JSON file.

    Args:
        row: its fields.
        where: what errors call it ("zsre.json, entry 3").
    """

    def __init__(self, row: Mapping[str, Any], where: str) -> None:
        self.row, self.where = row, where

    def __contains__(self, name: str) -> bool:
        return self.row.get(name) is not None

    def text(self, name: str) -> str:
        """A text which is not blank, white space around it cut."""
        value = self._value(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "text", value)
        return value.strip()

    def texts(self, name: str) -> tuple[str, ...]:
        """All texts of a list, or a text alone; blank ones are left out."""
        return tuple(text for text in self._items(name) if text)

    def pairs(self, name: str, other: str) -> list[tuple[str, str]]:
        """The texts of two lists side by side; pairs with a blank one are left out."""
        left, right = self._items(name), self._items(other)
        if len(left) != len(right):
            raise self.error(other, f"{len(left)} texts as in {name!r}", self.row[other])
        return [(a, b) for a, b in zip(left, right, strict=True) if a and b]

    def aliases(self, name: str) -> tuple[str, ...]:
        """A text, a list of texts or a list of lists: the different ones that are not blank."""
        value = self._value(name)
        flat: list[Any] = []
        for item in value if isinstance(value, list) else [value]:
            flat += item if isinstance(item, list) else [item]
        if not flat or not all(isinstance(item, str) for item in flat):
            raise self.error(name, "text or lists of texts", value)
        return tuple(dict.fromkeys(item.strip() for item in flat if item.strip()))

    def record(self, name: str) -> Record:
        """The fields of an object inside."""
        value = self._value(name)
        if not isinstance(value, dict):
            raise self.error(name, "an object", value)
        return Record(value, f"{self.where}, {name}")

    def records(self, name: str) -> list[Record]:
        """The objects of a list inside."""
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(name, "a list of objects", value)
        return [Record(item, f"{self.where}, {name}[{i}]") for i, item in enumerate(value)]

    def error(self, name: str, expected: str, value: Any) -> RequestError:
        """The error of a field which is not as expected."""
        came = type_and_repr(value, 40)
        return RequestError(f"{self.where}: field {name!r}: expected {expected}, got {came}")

    def _items(self, name: str) -> list[str]:
        """The texts of a list, or a text alone, blank ones as ""."""
        value = self._value(name)
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.error(name, "a list of texts", value)
        return [item.strip() for item in items]

    def _value(self, name: str) -> Any:
        if name not in self.row:
            raise RequestError(
                f"{self.where}: field {name!r} is missing (found {short_names(self.row)})"
            )
        return self.row[name]


def read_records(path: str | Path) -> Iterator[Record]:
    """The entries of a JSON or JSONL file; see `read_rows` for what is refused."""
    for where, row in read_rows(path):
        yield Record(row, where)
