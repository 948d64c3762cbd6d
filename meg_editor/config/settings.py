"""Hyper-parameters as a flat dataclass with checks, read from EasyEdit's YAML."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

Settings = TypeVar("Settings", bound="FlatHyperParams")


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
        ge, lt: bounds of a number: greater or equal, less than.
    """
    metadata = {"help": help, "ge": ge, "lt": lt}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class FlatHyperParams:
    """Base class of every method's hyper-parameters; its fields are made by `setting`.

    Raises:
        HParamsError: on construction, for a value of the wrong type or out of its range.

    Example:
        >>> @dataclass
        ... class Mine(FlatHyperParams):
        ...     lr: float = setting(0.1, "Learning rate.", ge=0)
        >>> Mine.from_dict({"lr": "1e-3"})
        Mine(lr=0.001)
    """

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
                if former := cls.explain(str(key)):
                    raise HParamsError(f"{key!r}: {former}")
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
                raise HParamsError(f"unknown hyper-parameter {key!r}{hint}")
        return cls(**dict(values))

    @classmethod
    def explain(cls, key: str) -> str | None:
        """Hint for a setting which was renamed or removed; None for any other key."""
        return None

    @classmethod
    def from_hparams(cls: type[Settings], path: str | Path) -> Settings:
        """Read a flat YAML file, as EasyEdit does; `.yaml` may be left off.

        Raises:
            FileNotFoundError: no such file.
            HParamsError: not YAML, not a flat mapping, an unknown key, or a bad value.
        """
        path = Path(path)
        if not path.is_file() and path.suffix != ".yaml":
            path = path.with_name(f"{path.name}.yaml")  # names have dots: llama3.2-3b
        try:
            values = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise HParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise HParamsError(f"{path}: expected a flat YAML mapping, got {type(values).__name__}")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self)


def _check_range(name: str, value: Any, ge: float | None, lt: float | None) -> None:
    if value is None:
        return
    if ge is not None and value < ge:
        raise HParamsError(f"{name}: expected at least {ge}, got {value}")
    if lt is not None and value >= lt:
        raise HParamsError(f"{name}: expected less than {lt}, got {value}")


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Check `value` against its type hint; YAML's "1e-4" (text) becomes a number."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise HParamsError(f"{name}: expected one of {get_args(hint)}, got {value!r}")
        return value
    options = get_args(hint) if get_origin(hint) not in (None, list) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if get_origin(hint) is Literal:
        return _coerce(value, hint, name)
    if hint == list[int]:
        if isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
            return list(value)
    elif hint == list[str]:
        if isinstance(value, (list, tuple)) and all(type(item) is str for item in value):
            return list(value)
    elif hint is float:
        try:
            if not isinstance(value, bool) and math.isfinite(float(value)):
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        raise HParamsError(f"{name}: expected a finite number, got {value!r}")
    elif hint is str and name == "device" and type(value) is int:
        return f"cuda:{value}"
    elif type(value) is hint:
        return value
    expected = str(hint) if get_origin(hint) else hint.__name__
    raise HParamsError(f"{name}: expected {expected}, got {value!r} ({type(value).__name__})")
