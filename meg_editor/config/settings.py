"""Hyper-parameters as a flat dataclass with checks, read from EasyEdit's YAML."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from meg_editor.config.flat_yaml import is_decimal, parse_flat_yaml
from meg_editor.config.input_files import read_regular_file, short_repr, shown_path
from meg_editor.config.unicode_text import bad_character

Settings = TypeVar("Settings", bound="FlatHyperParams")

_MAX_FILE = 2**17  # bytes; the parser takes two seconds for so many
# Bounds of a number whose setting names none: a typing error must not ask for terabytes or years.
_MAX_INT, _MAX_FLOAT = 2**31, 1e6


class HParamsError(ValueError):
    """A setting that does not exist or cannot have the given value.

    Example:
        >>> from meg_editor import MeGHyperParams
        >>> MeGHyperParams.from_dict({"generator_with": 256})
        Traceback (most recent call last):
        ...
        meg_editor.config.settings.HParamsError: unknown hyper-parameter 'generator_with'; did you
        mean 'generator_width'?
    """


def setting(default: Any, help: str, *, ge: float | None = None, lt: float | None = None) -> Any:
    """A dataclass field of `FlatHyperParams`.

    Args:
        default: its default; its type comes from the annotation.
        help: what it is, its unit, when to change it, the paper's value.
        ge, lt: bounds of a number: greater or equal, less than. By default integers are between
            -2**31 and 2**31, floats between -1e6 and 1e6.
    """
    metadata = {"help": help, "ge": ge, "lt": lt}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class FlatHyperParams:
    """Base class of every method's hyper-parameters; its fields are made by `setting`.

    Attributes:
        listed: where all settings are listed, if they are too many for a message.

    Raises:
        HParamsError: on construction, for a value of the wrong type or out of its range.

    Example:
        >>> @dataclass
        ... class Mine(FlatHyperParams):
        ...     lr: float = setting(0.1, "Learning rate.", ge=0)
        >>> Mine.from_dict({"lr": "1e-3"})
        Mine(lr=0.001)
    """

    listed: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in dataclasses.fields(self):
            value = _coerce(getattr(self, entry.name), hints[entry.name], entry.name)
            _check_range(entry.name, value, entry.metadata["ge"], entry.metadata["lt"])
            setattr(self, entry.name, value)

    def changed(self: Settings, **changes: Any) -> Settings:
        """A copy with other values, checked as on construction."""
        return type(self).from_dict({**self.to_dict(), **changes})

    @classmethod
    def from_dict(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
        """Build from a mapping of settings.

        Raises:
            HParamsError: an unknown key (the message has the nearest valid one), or a bad value.
        """
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                name = short_repr(key)
                if former := cls.explain(key) if isinstance(key, str) else None:
                    raise HParamsError(f"{name}: {former}")
                close = difflib.get_close_matches(name.strip("'"), known, n=1, cutoff=0.5)
                listed = cls.listed or f"known: {', '.join(known)}"
                hint = f"; did you mean {close[0]!r}?" if close else f"; {listed}"
                raise HParamsError(f"unknown hyper-parameter {name}{hint}")
        return cls(**dict(values))

    @classmethod
    def explain(cls, key: str) -> str | None:
        """Hint for a setting which was renamed or removed; None for any other key."""
        return None

    @classmethod
    def from_hparams(cls: type[Settings], path: str | Path) -> Settings:
        """Read a flat YAML file, as EasyEdit does; `.yaml` may be left off.

        Raises:
            FileNotFoundError, IsADirectoryError: no such file.
            HParamsError: not a regular file of at most 128 KiB, not YAML, more than scalars and
                lists of them (see `parse_flat_yaml`), an unknown key, or a bad value; the message
                names the file.
        """
        path = Path(path)
        if not path.is_file() and path.suffix != ".yaml" and path.name:
            named = path.with_name(f"{path.name}.yaml")  # names have dots: llama3.2-3b
            path = named if named.exists() or not path.exists() else path
        shown = shown_path(path)
        try:
            data = read_regular_file(path, _MAX_FILE, shown)
        except ValueError as error:
            raise HParamsError(str(error)) from error
        try:
            return cls.from_dict(parse_flat_yaml(data.decode()))
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise HParamsError(
                f"{shown}: not YAML: byte 0x{data[error.start]:02x} in line {line} is not UTF-8"
            ) from error
        except ValueError as error:
            raise HParamsError(f"{shown}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self)


def _check_range(name: str, value: Any, ge: float | None, lt: float | None) -> None:
    """Check a number, or every number of a list."""
    for number in value if isinstance(value, list) else [value]:
        if type(number) not in (int, float):
            continue
        bound = _MAX_INT if type(number) is int else _MAX_FLOAT
        low, high = -bound if ge is None else ge, bound if lt is None else lt
        if number < low:
            raise HParamsError(f"{name}: expected at least {low}, got {short_repr(number)}")
        if number >= high:
            raise HParamsError(f"{name}: expected less than {high}, got {short_repr(number)}")


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Check `value` against its type hint; YAML's "1e-4" (text) becomes a number."""
    if get_origin(hint) is Literal:
        if type(value) is not str or value not in get_args(hint):
            raise HParamsError(f"{name}: expected one of {get_args(hint)}, got {short_repr(value)}")
        return value
    options = get_args(hint) if get_origin(hint) not in (None, list) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if get_origin(hint) is Literal:
        return _coerce(value, hint, name)
    if hint == list[int] or hint == list[str]:
        (kind,) = get_args(hint)
        if isinstance(value, (list, tuple)) and all(type(item) is kind for item in value):
            return [_checked_text(item, name) for item in value]
    elif hint is float:
        return _number(value, name)
    elif hint is str and name == "device" and type(value) is int and 0 <= value < _MAX_INT:
        return f"cuda:{value}"
    elif type(value) is hint:
        return _checked_text(value, name)
    expected = str(hint) if get_origin(hint) else hint.__name__
    got = f"{short_repr(value)} ({type(value).__name__})"
    raise HParamsError(f"{name}: expected {expected}, got {got}")


def _number(value: Any, name: str) -> float:
    try:
        plain = is_decimal(value) if isinstance(value, str) else hasattr(type(value), "__float__")
        if plain and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise HParamsError(f"{name}: expected a finite number, got {short_repr(value)}")


def _checked_text(value: Any, name: str) -> Any:
    """`value`, which may hold no control characters if it is text."""
    if isinstance(value, str) and (flaw := bad_character(value)):
        raise HParamsError(f"{name}: expected plain text, got {flaw} of {short_repr(value)}")
    return value
