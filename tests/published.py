"""The published data sets, which do not ship with the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def published(name: str) -> Path:
    """A file of the folder MEG_EDITOR_DATA; where there is none the test is skipped."""
    folder = Path(os.environ.get("MEG_EDITOR_DATA", _DEFAULT))
    if not (folder / name).exists():
        pytest.skip(f"{name} is not at {folder}: set MEG_EDITOR_DATA to the folder of the data")
    return folder / name
