"""The model hub: whether it answers, and whether a repository is in its cache; asked once, briefly.

Without it transformers asks for every file again and again, for half a minute and more.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Any

_SECONDS = 3.0  # for an answer; HF_HUB_ETAG_TIMEOUT overrides it, as for every request
_VALID = 60.0  # seconds for which an answer is taken as it was
_FILE = "config.json"
_PART = r"\w(?:(?!\.\.|--)[\w.-])*(?<![.-])"  # as the hub's library checks it
_ID = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)
_latest: dict[str, tuple[float, str | None]] = {}  # endpoint -> when it was asked, its problem


def is_repository_id(name: str) -> bool:
    """Whether `name` can be the id of a repository: `gpt2`, `org/name`.

    Example:
        >>> is_repository_id("org/name"), is_repository_id("./name"), is_repository_id("a/b/c")
        (True, False, False)
    """
    return len(name) <= 96 and _ID.fullmatch(name) is not None


def hub_options(repository: str, revision: str | None = None) -> dict[str, Any] | None:
    """Options of `from_pretrained` for a repository, by what can be reached.

    Returns:
        {} if the hub answers; local_files_only where it does not and the cache has the repository;
        None if neither has it.
    """
    from huggingface_hub import try_to_load_from_cache

    if hub_problem() is None:
        return {}
    cached = try_to_load_from_cache(repository, _FILE, revision=revision)
    return {"local_files_only": True} if isinstance(cached, str) else None


def hub_problem() -> str | None:
    """Why the hub (HF_ENDPOINT) cannot be asked; None if it answers, whatever it says.

    One request of at most three seconds (or HF_HUB_ETAG_TIMEOUT); asked again after a minute.
    """
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    endpoint = constants.ENDPOINT
    asked, problem = _latest.get(endpoint, (-_VALID, None))
    if time.monotonic() - asked >= _VALID:
        problem = _asked(endpoint)
        _latest[endpoint] = (time.monotonic(), problem)
    return problem


def _asked(endpoint: str) -> str | None:
    from huggingface_hub import constants, get_session

    given = "HF_HUB_ETAG_TIMEOUT" in os.environ
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if given else _SECONDS
    slow = f"{endpoint} gave no answer in {seconds:g} s (HF_HUB_ETAG_TIMEOUT=30 waits longer)"
    problems: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=seconds)
        except Exception as error:  # of the HTTP library which huggingface_hub happens to use
            what = slow if "timeout" in type(error).__name__.lower() else ""
            problems.append(what or f"{endpoint} cannot be reached ({error})")
        else:
            problems.append(None)

    # In a thread: a timeout does not hold for the look-up of the host's name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return problems[0] if problems else slow
