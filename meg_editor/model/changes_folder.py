"""Where the changes to a version of a folder are: the only part which is written to later."""

from __future__ import annotations

import shutil
from pathlib import Path

from meg_editor.edits.log import LOG
from meg_editor.model.manifest import CHECKSUM, CONFIG, read_config, reading

CHANGES = "changes"


def changes_folder(folder: Path, checksum: str) -> Path:
    """Where the changes to the version of this checksum are.

    Example:
        >>> changes_folder(Path("edits"), "0123456789abcdef0123").as_posix()
        'edits/changes/0123456789abcdef'
    """
    return folder / CHANGES / checksum[:16]


def remove_changes(folder: Path, outdated: bool = False) -> None:
    """Remove the changes to all versions of `folder`.

    Args:
        outdated: but not those to the version in force.
    """
    kept = None
    if outdated:
        with reading(folder / CONFIG):
            kept = changes_folder(folder, str(read_config(folder).get(CHECKSUM)))
    for place in (folder / CHANGES).glob("*"):
        if place != kept and place.is_dir():
            (place / LOG).unlink(missing_ok=True)  # first: without it nothing else is read
            shutil.rmtree(place, ignore_errors=True)
