"""Save an edited model to its folder, atomically."""

from __future__ import annotations

import copy
import errno
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from meg_editor import __version__
from meg_editor.edits.log import End, append_changes
from meg_editor.generators import WeightGenerator
from meg_editor.generators.grown import GrownGenerator
from meg_editor.lm.model_files import check_copyable, save_copy
from meg_editor.lm.reference import ModelReference
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.appending import OtherWriterError, Saved, append, check_own
from meg_editor.model.saved.checks import check_neuron
from meg_editor.model.saved.layout import (
    EDITS,
    GATE,
    GENERATOR,
    HISTORY,
    INDEX,
    VERIFIER,
    blanks,
    differences,
)
from meg_editor.model.saved.manifest import (
    CHECKSUM,
    CONFIG,
    SavedModelError,
    checksum,
    manifest_names,
    manifest_of,
    some_of,
)
from meg_editor.model.saved.publish import FolderBusyError, publish, settle
from meg_editor.model.saved.schema import FORMAT_VERSION, format_edits
from meg_editor.runtime.files import check_creatable, kind_of, resolved

# What an upload leaves of an earlier version would be foreign to the new one.
UPLOADED = ("base/*", "encoder/*", "tokenizer/*", f"{HISTORY}/*", VERIFIER)
_OF_CHANGES = re.compile(r"changes/[0-9a-f]{16}/(log\.jsonl|[0-9]{6,}\.safetensors)")


def save_pretrained(model: MeGModel, folder: str | Path, *, save_base: bool = False) -> None:
    """Save the edits to `folder`, replacing edits saved there before.

    In a folder which the model was loaded from, or saved to before, only the changes since are
    written, in one transaction each; a base model which is there stays.

    Args:
        save_base: save the base model too; else the folder holds only its name and fingerprint.

    Raises:
        ValueError: the gate or generator is not what the hyper-parameters describe, or the base
            model could not be loaded from a copy.
        OSError: `check_destination` refuses, another process saved to a folder of the model's
            (`OtherWriterError`) or has been writing to it for a minute (`FolderBusyError`), or
            writing failed; the earlier content of `folder` is unchanged.
    """
    with model._changing.taken():
        own = resolved(folder)
        try:
            saved = append(model, own, save_base)
        except (OtherWriterError, FolderBusyError):
            raise
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"cannot save a change to {own}: {error}; what was saved before is in force; free "
                "space and save again, or use another folder",
            ) from error
        former = model._saved.get(own)
        kept = former is not None and former.has_base
        model._saved[own] = saved or save_whole(model, folder, save_base or kept)


def save_whole(model: MeGModel, folder: str | Path, save_base: bool) -> Saved:
    """Write a whole version, which does not become the model's own; see `save_pretrained`."""
    edition = model._history.origin
    expected = blanks(
        model.hparams,
        model.encoder.dimension,
        model.spec.size,
        len(edition.edits),
        stored_beside(edition.generator),
    )
    for part, blank in zip((edition.gate, edition.generator), expected, strict=True):
        wrong = differences(part.state_dict(), blank.state_dict())
        if wrong or type(part) is not type(blank):
            raise ValueError(
                f"expected the {type(blank).__name__} which model.hparams describe, got a "
                f"{type(part).__name__}: {wrong}; set model.hparams to those it was built with"
            )
    check_neuron(model.spec, model.hparams, model.base)
    if save_base:
        check_copyable(model.base)
    folder = check_destination(folder)
    written: list[str] = []
    former = model._saved.get(folder)

    def check() -> None:
        if former is not None and (folder / CONFIG).is_file():
            check_own(former)

    try:
        publish(folder, lambda new: written.append(_write(model, new, save_base)), check)
    except (OtherWriterError, FolderBusyError):
        raise
    except Exception as error:
        # safetensors and tokenizers pass on the I/O errors of Rust as exceptions of their own.
        rust = re.search(r"\(os error (\d+)\)", str(error))
        if not isinstance(error, OSError) and not rust:
            raise
        code = int(rust[1]) if rust else getattr(error, "errno", None)
        raise _not_saved(folder, error, code) from error
    history, end = model._history, End(written[0])
    count, settings = len(history.changes), model._settings
    return Saved(folder, written[0], history, count, end, settings, save_base)


def stored_beside(generator: WeightGenerator) -> int | None:
    """Number of stored neurons beside a trained generator; None where it is one or the other."""
    return len(generator.neurons) if isinstance(generator, GrownGenerator) else None


def check_destination(folder: str | Path) -> Path:
    """Check, before a fit, that edits can be saved to `folder`; returns its absolute path.

    It may be missing, empty, or hold saved edits, of which only their own files will be replaced.
    Creates missing parents.

    Raises:
        FileExistsError: `folder` is something else, or has foreign files in our places.
        OSError: its name or its parent is impossible, or not writable.

    Example:
        >>> import tempfile
        >>> check_destination(Path(tempfile.mkdtemp()) / "runs" / "edits").name
        'edits'
    """
    given, folder = Path(folder), resolved(folder)
    refused = "is not overwritten; move that away, or choose a new or empty folder"
    if folder.is_dir():
        if strange := _strange(folder):
            raise FileExistsError(
                f"{folder} holds something other than saved edits ({some_of(strange)}) and "
                f"{refused}"
            )
    elif folder.exists() or given.is_symlink():
        kind = kind_of(folder.stat().st_mode) if folder.exists() else "link to nothing"
        raise FileExistsError(f"{folder} is a {kind}, which {refused}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for place in {folder, folder / CONFIG} if folder.is_dir() else {folder}:
            check_creatable(place)
    except OSError as error:
        raise _not_saved(folder, error, error.errno) from error
    return folder


def _strange(folder: Path) -> set[str]:
    """Files in a folder, relative, which are not those of saved edits; hidden ones do not count."""
    settle(folder)
    entries = {entry for entry in folder.iterdir() if entry.name[0] != "."}
    try:
        ours = manifest_names(folder) | {CONFIG} if folder / CONFIG in entries else set()
    except SavedModelError:
        ours = set()
    if not ours:
        return {entry.name for entry in entries}
    # A link may lead to somebody else's folder.
    inside = {path for entry in entries if not entry.is_symlink() for path in entry.rglob("*")}
    paths = {path for path in entries | inside if not path.is_dir() or path.is_symlink()}
    names = {path.relative_to(folder).as_posix() for path in paths} - ours
    return {name for name in names if not _OF_CHANGES.fullmatch(name)}


def _not_saved(folder: Path, error: Exception, code: int | None) -> OSError:
    problem = f"cannot save the edits to {folder}: {error}; nothing was changed there"
    return OSError(code or errno.EIO, f"{problem}; free space or use another folder")


def _write(model: MeGModel, folder: Path, save_base: bool) -> str:
    """Write a whole version; returns the checksum of its config."""
    base = model.base
    if save_base:
        save_copy(base, folder / "base")
        _save_tokenizer(model.tokenizer, folder / "base")
    _save_tokenizer(model.tokenizer, folder / "tokenizer")
    model.encoder.save_pretrained(folder / "encoder")
    edition = model._history.origin
    (folder / EDITS).write_text(format_edits(edition.edits), "utf-8", newline="\n")
    if model._history.changes:
        append_changes(folder / HISTORY, End(HISTORY), model._history.changes)
    for file, part in (
        (GATE, edition.gate),
        (GENERATOR, edition.generator),
        (INDEX, edition.index),
    ):
        tensors = {name: value.cpu().contiguous() for name, value in part.state_dict().items()}
        if part is edition.gate:  # it may have been set since the first change
            tensors["threshold"] = model.gate.threshold.cpu()
        save_file(tensors, folder / file)
    if model.verifier:
        adapter = {name: value.cpu().contiguous() for name, value in model.verifier.tensors.items()}
        save_file(adapter, folder / VERIFIER)
    versions = {lib.__name__: lib.__version__ for lib in (torch, transformers)}
    config = {
        "format_version": FORMAT_VERSION,
        "versions": {"meg_editor": __version__, **versions},
        "hparams": {**model.hparams.to_dict(), "api_key": None},  # a secret is not saved
        "neuron": model.spec.to_dict(),
        "base": ModelReference.of(base, model.hparams.model_name).to_dict(),
        "edits": len(edition.edits),
        "stored_beside": stored_beside(edition.generator),
        "encoder_pooling": model.encoder.pooling,
        "files": manifest_of(folder),
        # Two versions differ, whatever they hold: changes belong to one of them.
        "saved": datetime.now(UTC).isoformat(),
    }
    config[CHECKSUM] = stamp = checksum(config)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False), "utf-8")
    return stamp


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save it with its current sides: transformers saves those it was constructed with."""
    tokenizer = copy.copy(tokenizer)
    sides = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side")}
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, **sides}
    tokenizer.save_pretrained(folder)
