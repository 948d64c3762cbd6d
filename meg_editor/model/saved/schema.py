"""Schema of the text files of saved edits, checked before anything is built from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from meg_editor.config.input_files import short_repr
from meg_editor.edits.edit import Edit
from meg_editor.edits.log import edit_of, entry_of

FORMAT_VERSION = 5
_READ = (3, 4, 5)  # 3: without a verifier; 4: without changes

# A schema is a type or types, a set of values, [schema of items] or {key: schema}; "*": any key.
_OPTIONAL, _FLOATS = (str, type(None)), [(float, int)]
_LISTS = {"rephrases": [str], "locality_prompts": [str]}
_EDIT = {"prompt": str, "target_new": str, "subject": _OPTIONAL, **_LISTS}
_MADE = {"when": str, "by": str, "stored": bool}  # since format 5
_SPEC = {"layer": int, "read": str, "write": str, "hidden_size": int, "activation": str}
_BASE = {"name": str, "revision": _OPTIONAL, "fingerprint": {"*": _FLOATS}}
_SCHEMA = {
    "hparams": dict,
    "neuron": {**_SPEC, "bias": bool},
    "base": {**_BASE, "dtype": {"float32", "bfloat16", "float16", "float64"}},
    "edits": int,
    "encoder_pooling": str,
    "files": {"*": {"sha256": str, "size": int}},
    "checksum": str,
}


def parse_config(config: dict[str, Any]) -> dict[str, Any]:
    """Content of meg_config.json, checked.

    Raises:
        ValueError: another format version, or an entry is missing or of another type.
    """
    _check(config, {"format_version": int})
    if config["format_version"] not in _READ:
        raise ValueError(
            f"expected format_version {' or '.join(map(str, _READ))}, got "
            f"{config['format_version']}: load it with the meg_editor that wrote it "
            f"({short_repr(config.get('versions'))})"
        )
    _check(config, _SCHEMA)
    return config


def format_edits(edits: Sequence[Edit]) -> str:
    """Edits as JSONL."""
    lines = [json.dumps(entry_of(edit), ensure_ascii=False) for edit in edits]
    return "".join(f"{line}\n" for line in lines)


def parse_edits(text: str, count: int) -> list[Edit]:
    """The inverse of `format_edits`.

    Raises:
        ValueError: not JSONL of `count` edits.

    Example:
        >>> edits = [Edit("The capital of France is", "Lima")]
        >>> parse_edits(format_edits(edits), 1) == edits
        True
    """
    rows = [json.loads(line) for line in text.split("\n") if line]
    if len(rows) != count:
        raise ValueError(f"expected {count} edits, got {len(rows)}")
    _check(rows, [{**_EDIT, **(_MADE if rows and "when" in rows[0] else {})}])
    return [edit_of(row) for row in rows]


def _check(value: Any, schema: Any, where: str = "the file") -> None:
    """Check a value against a schema as in _SCHEMA. Raises ValueError naming `where`."""
    if isinstance(schema, set):
        options, fits = schema, isinstance(value, str) and value in schema
    else:  # type() instead of isinstance(): a bool is no number here
        kind: Any = type(schema) if isinstance(schema, (dict, list)) else schema
        kinds = kind if isinstance(kind, tuple) else (kind,)
        options, fits = {kind.__name__ for kind in kinds}, type(value) in kinds
    if not fits:
        got = f"{type(value).__name__} {short_repr(value, 40)}"
        raise ValueError(f"{where}: expected {' or '.join(sorted(options))}, got {got}")
    if isinstance(schema, list):
        for index, item in enumerate(value):
            _check(item, schema[0], f"{where}, item {index}")
    elif isinstance(schema, dict):
        for key in value if "*" in schema else schema:
            if key not in value:
                raise ValueError(f"{where}: {key!r} is missing")
            plain = len(key) <= 80 and key.isprintable()
            inside = f"{where}: {key if plain else short_repr(key)}"
            _check(value[key], schema.get("*", schema.get(key)), inside)
