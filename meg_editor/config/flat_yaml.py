"""The part of YAML that settings need: names with scalars, or with lists of scalars.

The parser's events are checked one by one and nothing is built before, so that a bomb of aliases
or a deep nesting ends at its first line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from meg_editor.config.input_files import short_repr

_RESOLVER = yaml.resolver.Resolver()
_PREFIX = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 100
_TRUE = ("yes", "true", "on")


def is_decimal(text: str) -> bool:
    """Whether `text` is a plain decimal number in ASCII, with or without exponent.

    Example:
        >>> [is_decimal(text) for text in ("1e-4", ".5", "1_0", " 5", "nan")]
        [True, True, False, False, False]
    """
    return _DECIMAL.fullmatch(text) is not None


def parse_flat_yaml(text: str) -> dict[str, Any]:
    """The settings of a YAML file.

    YAML 1.1 is more than settings need, and reads 1:30 as 90 and 010 as 8. Refused are such
    numbers, dates, anchors and aliases, tags, merge keys, names set twice, nesting, directives and
    several documents.

    Raises:
        ValueError: not YAML, or what is refused; the message has the line.

    Example:
        >>> parse_flat_yaml("layers: [5]\\nencoder_lr: 3.0e-4\\nfp16: yes")
        {'layers': [5], 'encoder_lr': 0.0003, 'fp16': True}
        >>> parse_flat_yaml("seed: 1\\nseed: 010")
        Traceback (most recent call last):
        ...
        ValueError: line 2: 'seed' is set twice, first in line 1; keep one
    """
    events = _document(text)
    if not isinstance(next(events, None), yaml.MappingStartEvent):
        raise ValueError("expected a flat YAML mapping: a line `name: value` for each setting")
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            break
        name = _scalar(event) if isinstance(event, yaml.ScalarEvent) else None
        if not isinstance(name, str):
            raise ValueError(f"{_line(event)}: expected the name of a setting, got {_shown(event)}")
        if name in values:
            raise ValueError(
                f"{_line(event)}: {short_repr(name)} is set twice, first in line {lines[name]}; "
                "keep one"
            )
        lines[name] = _line_number(event)
        values[name] = _value(next(events), events, name)
    for _ in events:  # errors after the mapping
        pass
    return values


def parse_yaml_value(text: str) -> Any:
    """The value of one setting, a scalar or a list of scalars, as in a file.

    Raises:
        ValueError: as `parse_flat_yaml`.

    Example:
        >>> parse_yaml_value("[1, 2]"), parse_yaml_value("null"), parse_yaml_value("1e-4")
        ([1, 2], None, '1e-4')
    """
    events = _document(text)
    first = next(events, None)
    value = None if first is None else _value(first, events, "the value")
    for _ in events:
        pass
    return value


def _document(text: str) -> Iterator[yaml.Event]:
    """The events inside the only document, without anchors and tags."""
    documents = 0
    for event in _parsed(text):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ValueError(f"{_line(event)}: a second YAML document; keep one")
            before = text[: event.end_mark.index] if event.end_mark else ""
            if re.search(r"^%(?!YAML )", before, re.MULTILINE):
                raise ValueError(f"{_line(event)}: directives are not read; remove the % line")
        elif isinstance(event, yaml.NodeEvent):
            if event.anchor is not None:
                sign = "alias *" if isinstance(event, yaml.AliasEvent) else "anchor &"
                raise ValueError(
                    f"{_line(event)}: {sign}{event.anchor[:40]}: settings have no anchors and "
                    "aliases; write the value out"
                )
            if (tag := getattr(event, "tag", None)) is not None:
                raise ValueError(
                    f"{_line(event)}: tag {short_repr(tag, 60)}: settings have no tags; write the "
                    "plain value"
                )
            yield event
        elif isinstance(event, yaml.CollectionEndEvent):
            yield event


def _parsed(text: str) -> Iterator[yaml.Event]:
    """The parser's events; its errors in one line."""
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{int(error.character):04X}"
        raise ValueError(f"line {line}: not YAML: character {code} is not allowed") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        parts = [part for part in (error.context, error.problem) if part]
        said = " ".join(", ".join(parts).split())
        raise ValueError(f"{where}not YAML: {said:.200}") from error


def _value(event: yaml.Event, events: Iterator[yaml.Event], name: str) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    items: list[Any] = []
    if isinstance(event, yaml.SequenceStartEvent):
        for item in events:
            if isinstance(item, yaml.SequenceEndEvent):
                return items
            if not isinstance(item, yaml.ScalarEvent):
                event = item
                break
            items.append(_scalar(item))
    braces = isinstance(event, yaml.MappingStartEvent) and event.flow_style
    hint = "; put text with braces into quotes" if braces else ""
    raise ValueError(
        f"{_line(event)}: {short_repr(name)} holds {_shown(event)}: settings are flat; expected "
        f"one value, or a list of them{hint}"
    )


def _scalar(event: yaml.ScalarEvent) -> Any:
    """The value of a scalar; what is quoted is text."""
    text = event.value
    if event.style is not None:
        return text
    resolved = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    tag = str(resolved).removeprefix(_PREFIX)
    if tag == "str":
        return text
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in _TRUE
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{_line(event)}: {short_repr(text, 30)}: a number of {len(text)} digits")
    if tag == "int" and _INT.fullmatch(text):
        return int(text)
    if tag == "float" and is_decimal(text):
        return float(text)
    kinds = {"int": "number", "float": "number", "timestamp": "date"}
    raise ValueError(
        f"{_line(event)}: {short_repr(text, 40)} is a special {kinds.get(tag, tag)} in YAML; write "
        "a plain decimal number, or quote it if it is text"
    )


def _shown(event: yaml.Event) -> str:
    if isinstance(event, yaml.ScalarEvent):
        return short_repr(event.value)
    return "a mapping" if isinstance(event, yaml.MappingStartEvent) else "a list"


def _line(event: yaml.Event) -> str:
    return f"line {_line_number(event)}"


def _line_number(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
