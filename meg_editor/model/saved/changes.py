"""Where the changes to a version of a folder are: the only part which is written to later."""

from __future__ import annotations

import shutil
from pathlib import Path

from meg_editor.edits.log import Line, read_log
from meg_editor.model.saved.layout import HISTORY
from meg_editor.model.saved.manifest import CHECKSUM, CONFIG, read_config, reading

CHANGES = "changes"


def changes_folder(folder: Path, checksum: str) -> Path:
    """Where the changes to the version of this checksum are.

    Example:
        >>> changes_folder(Path("edits"), "0123456789abcdef0123").as_posix()
        'edits/changes/0123456789abcdef'
    """
    return folder / CHANGES / checksum[:16]


def read_changes(home: Path, version: Path, checksum: str) -> tuple[list[Line], list[Line]]:
    """The lines of what was saved with a version, and of the changes since.

    Args:
        home: the folder.
        version: where the files of the version are: `home`, or a view of it.
        checksum: of its config.

    Raises:
        ValueError: a log was changed.
    """
    changes = changes_folder(home, checksum)
    return read_log(version / HISTORY, HISTORY), read_log(changes, checksum)


def count_changes(folder: Path) -> int:
    """How many changes a folder has since its edits were fitted; 0 where it has none to read."""
    try:
        checksum = str(read_config(folder).get(CHECKSUM))
        earlier, later = read_changes(folder, folder, checksum)
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return len(earlier) + len(later)


def remove_outdated(folder: Path) -> None:
    """Remove the changes to versions of `folder` which are not in force any more."""
    with reading(folder / CONFIG):
        kept = changes_folder(folder, str(read_config(folder).get(CHECKSUM)))
    for place in (folder / CHANGES).glob("*"):
        if place != kept and place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
