"""The edits in a folder and their changes, without loading a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from meg_editor.edits.edit import Edit
from meg_editor.edits.log import Line, replayed
from meg_editor.model.saved.changes import CHANGES, read_changes
from meg_editor.model.saved.layout import EDITS
from meg_editor.model.saved.manifest import CHECKSUM, CONFIG, reading, verify
from meg_editor.model.saved.schema import parse_edits
from meg_editor.model.saved.versions import read_version
from meg_editor.runtime.files import resolved


def saved_edits(folder: str | Path) -> tuple[Edit, ...]:
    """The edits in force in a folder.

    Raises:
        FileNotFoundError: there are no saved edits.
        SavedModelError: damaged files.
    """
    edits, lines = _read(folder)
    with reading(resolved(folder) / EDITS):
        return replayed(lines, {edit.id: edit for edit in edits})


def saved_changes(folder: str | Path) -> list[Line]:
    """The lines of the logs in a folder, in order."""
    return _read(folder)[1]


def _read(folder: str | Path) -> tuple[list[Edit], list[Line]]:
    folder = resolved(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no saved edits at {folder}: there is no {CONFIG}")
    return read_version(folder, partial(_read_view, home=folder))


def _read_view(view: Path, config: dict[str, Any], home: Path) -> tuple[list[Edit], list[Line]]:
    listed = {name: stamp for name, stamp in config["files"].items() if name == EDITS}
    verify(view, listed, required=[EDITS], closed=[])
    with reading(home / EDITS):
        edits = parse_edits((view / EDITS).read_text("utf-8"), config["edits"])
    with reading(home / CHANGES):
        earlier, later = read_changes(home, view, config[CHECKSUM])
    return edits, earlier + later
