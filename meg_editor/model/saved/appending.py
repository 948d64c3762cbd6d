"""Saving to a folder a model is of: only what has changed since is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.edits.change import History
from meg_editor.edits.log import End, append_changes
from meg_editor.model.saved.changes import changes_folder
from meg_editor.model.saved.manifest import CHECKSUM, CONFIG, read_config, reading
from meg_editor.model.saved.publish import settle, writing
from meg_editor.model.saved.schema import FORMAT_VERSION
from meg_editor.routing.gates import Gate
from meg_editor.routing.verifier import Verifier

if TYPE_CHECKING:
    from meg_editor.model.meg_model import MeGModel


class OtherWriterError(OSError):
    """Somebody else saved to the folder since this model was loaded from it, or saved to it."""


@dataclass(frozen=True)
class Settings:
    """What decides beside the edits, as it was at one time."""

    hparams: MeGHyperParams
    limits: Mapping[str, float]

    @classmethod
    def of(cls, hparams: MeGHyperParams, gate: Gate, verifier: Verifier | None) -> Settings:
        """As they are now: they may be changed in place."""
        limits = verifier.limits if verifier else {}
        return cls(hparams.changed(), {"gate": float(gate.threshold), **limits})


@dataclass(frozen=True)
class Saved:
    """The version of a folder which a model is of.

    Attributes:
        folder: resolved.
        checksum: of its config.
        history: the history which the version is the beginning of; None: it is written whole next
            time.
        count: changes of that history which it has.
        end: of its log.
        settings: which it has.
        has_base: whether the base model is in it.
    """

    folder: Path
    checksum: str
    history: History | None
    count: int
    end: End
    settings: Settings
    has_base: bool


def append(model: MeGModel, folder: Path, save_base: bool) -> Saved | None:
    """Write the changes since the last save, if `folder` is one of the model's; else None.

    None too where the whole folder has to be written: its history was ended, other settings, or an
    older format.

    Raises:
        OtherWriterError: another process saved to the folder meanwhile.
        FolderBusyError: another process has been writing to it for a minute.
        OSError: writing failed; the folder has none of the changes.
    """
    saved = model._saved.get(folder)
    if saved is None or not (folder / CONFIG).is_file():
        return None
    settle(folder)
    with writing(folder):
        version = check_own(saved)
        same = saved.history is model._history and saved.settings == model._settings
        same = same and version == FORMAT_VERSION  # older ones have no changes
        if not same or (save_base and not saved.has_base):
            return None
        if new := model._history.changes[saved.count :]:
            end = append_changes(changes_folder(folder, saved.checksum), saved.end, new)
            saved = replace(saved, count=saved.count + len(new), end=end)
            model._saved[folder] = saved
        return saved


def check_own(saved: Saved) -> object:
    """Check that nobody else has saved to a model's folder; returns the format of what it holds.

    The caller holds the folder's lock.

    Raises:
        OtherWriterError: another process did.
    """
    with reading(saved.folder / CONFIG):
        config = read_config(saved.folder)
    place = changes_folder(saved.folder, saved.checksum)
    if config.get(CHECKSUM) != saved.checksum or not saved.end.is_last(place):
        raise OtherWriterError(
            f"another process changed the edits in {saved.folder} since this model was loaded from "
            "or saved to it; load it again and repeat the change, or save to another folder"
        )
    return config.get("format_version")
