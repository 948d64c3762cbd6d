"""Progress bars with a time left, on standard error and only where someone can see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], label: str, unit: str = "step") -> tqdm[Item]:
    """Iterate with a bar; silent when standard error is not a terminal."""
    return tqdm(items, desc=f"{label:<12}", unit=unit, leave=False, disable=not sys.stderr.isatty())
