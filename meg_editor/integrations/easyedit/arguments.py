"""The arguments of EasyEdit's editor as its code expects them: lists of clean texts.

EasyEdit cuts lists alone into chunks, and scores the texts it is given, where a blank around a
prompt or a target costs a whole answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meg_editor.requests.request import EditRequest

_TEXTS = ("prompts", "target_new")


def cleaned(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `edit`, `batch_edit` or `edit_requests` by name, before anything is edited.

    Arrays, series and tuples become lists, `prompts` and `target_new` lose the blanks around them,
    a `subject` of None becomes "".

    Raises:
        RequestError: a prompt or a target is not text, or is empty; the message has its place.
        ValueError: there are not as many targets as prompts.

    Example:
        >>> cleaned({"prompts": ("Ada lives in ",), "target_new": [" Lima"], "subject": [None]})
        {'prompts': ['Ada lives in'], 'target_new': ['Lima'], 'subject': ['']}
    """
    plain = {name: _plain(value) for name, value in arguments.items()}
    prompts, targets = (plain.get(name) for name in _TEXTS)
    if isinstance(prompts, list) and isinstance(targets, list):
        if len(prompts) != len(targets):
            raise ValueError(f"got {len(prompts)} prompts and {len(targets)} targets")
        for place, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            row = {"prompt": prompt, "target_new": target}
            EditRequest.from_mapping(row, f"request {place}")
    for name in _TEXTS:
        if name in plain:
            plain[name] = _stripped(plain[name])
    if isinstance(plain.get("requests"), list):
        plain["requests"] = [_request(row) for row in plain["requests"]]
    if isinstance(plain.get("subject"), list):
        plain["subject"] = ["" if name is None else name for name in plain["subject"]]
    if isinstance(plain.get("kwargs"), dict):
        plain["kwargs"] = cleaned(plain["kwargs"])
    return plain


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
    return row | {name: _stripped(row[name]) for name in ("prompt", "target_new") if name in row}
