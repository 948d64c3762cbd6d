"""The arguments of EasyEdit's editor as its code expects them: lists of clean texts.

EasyEdit cuts lists alone into chunks, and scores the texts it is given, where a blank around a
prompt or a target costs a whole answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meg_editor.config.input_files import short_repr
from meg_editor.requests.request import EditRequest

_TEXTS = ("prompts", "target_new")
_COLUMNS = ("target_new", "ground_truth", "rephrase_prompts", "subject")


def cleaned(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `edit`, `batch_edit` or `edit_requests` by name, before anything is edited.

    Arrays, series and tuples become lists, `prompts` and `target_new` lose the blanks around them,
    a `subject` of None or NaN becomes "".

    Raises:
        RequestError: a prompt or a target is not text, or is empty; the message has its place.
        ValueError: no prompts, or another column that is no list of as many texts.

    Example:
        >>> cleaned({"prompts": ("Ada lives in ",), "target_new": [" Lima"], "subject": [None]})
        {'prompts': ['Ada lives in'], 'target_new': ['Lima'], 'subject': ['']}
    """
    plain = {name: _plain(value) for name, value in arguments.items()}
    prompts, targets = (plain.get(name) for name in _TEXTS)
    if isinstance(prompts, list):
        _check_columns(prompts, plain)
    if isinstance(prompts, list) and isinstance(targets, list):
        for place, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            row = {"prompt": prompt, "target_new": target}
            EditRequest.from_mapping(row, f"request {place}")
    for name in _TEXTS:
        if name in plain:
            plain[name] = _stripped(plain[name])
    if isinstance(plain.get("requests"), list):
        plain["requests"] = [_request(row) for row in plain["requests"]]
    if isinstance(plain.get("subject"), list):
        names = _stripped(plain["subject"])  # EasyEdit looks for them in the prompts
        plain["subject"] = [name if isinstance(name, str) else "" for name in names]
    elif plain.get("subject", "") is None:
        del plain["subject"]
    if isinstance(plain.get("kwargs"), dict):
        plain["kwargs"] = cleaned(plain["kwargs"])
    return plain


def _check_columns(prompts: list[Any], columns: Mapping[str, Any]) -> None:
    """EasyEdit cuts a text where it expects a list into its letters."""
    if not prompts:
        raise ValueError("prompts: expected at least one, got an empty list")
    further = columns.get("kwargs", {})
    for name in _COLUMNS:
        column = columns.get(name, further.get(name) if isinstance(further, Mapping) else None)
        if column is None or (isinstance(column, str) and len(prompts) == 1):
            continue
        if not isinstance(column, list):
            kind = f"the {type(column).__name__} {short_repr(column)}"
            raise ValueError(f"{name}: expected a list of {len(prompts)}, one a prompt, got {kind}")
        if len(column) != len(prompts):
            raise ValueError(f"{name}: expected {len(prompts)}, one a prompt, got {len(column)}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if hasattr(value, "tolist"):  # of NumPy, pandas, PyTorch
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _stripped(value: Any) -> Any:
    if isinstance(value, list):
        return [_stripped(text) for text in value]
    return value.strip() if isinstance(value, str) else value


def _request(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    texts = ("prompt", "target_new", "subject")
    return row | {name: _stripped(row[name]) for name in texts if name in row}
