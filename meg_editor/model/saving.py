"""Save an edited model to its folder, atomically."""

from __future__ import annotations

import copy
import errno
import json
import re
import shutil
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from meg_editor import __version__
from meg_editor.lm.reference import ModelReference
from meg_editor.model.folder import (
    EDITS,
    FILES,
    FOLDERS,
    GATE,
    GENERATOR,
    INDEX,
    blanks,
    differences,
)
from meg_editor.model.manifest import CONFIG, manifest_of, some_of
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.schema import FORMAT_VERSION, format_edits


def save_pretrained(model: MeGModel, folder: str | Path, *, save_base: bool = False) -> None:
    """Save the edits to `folder`, replacing edits saved there before.

    Args:
        save_base: save the base model too; else the folder holds only its name and fingerprint.

    Raises:
        ValueError: the gate or generator is not what the hyper-parameters describe.
        OSError: `check_destination` refuses, or writing failed; the earlier content of `folder` is
            unchanged.
    """
    expected = blanks(model.hparams, model.encoder.dimension, model.spec.size, len(model.edits))
    for part, blank in zip((model.gate, model.generator), expected, strict=True):
        wrong = differences(part.state_dict(), blank.state_dict())
        if wrong or type(part) is not type(blank):
            raise ValueError(
                f"expected the {type(blank).__name__} which model.hparams describe, got a "
                f"{type(part).__name__}: {wrong}; set model.hparams to those it was built with"
            )
    folder = check_destination(folder)
    part_folder = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part_folder.mkdir(parents=True)
        _write(model, part_folder, save_base)
        _swap(part_folder, folder)
    except Exception as error:
        # safetensors and tokenizers pass on the I/O errors of Rust as exceptions of their own.
        rust = re.search(r"\(os error (\d+)\)", str(error))
        if not isinstance(error, OSError) and not rust:
            raise
        code = int(rust[1]) if rust else getattr(error, "errno", None)
        raise _not_saved(folder, error, code) from error
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)


def check_destination(folder: str | Path) -> Path:
    """Check, before a fit, that edits can be saved to `folder`; returns its absolute path.

    Creates missing parents.

    Raises:
        FileExistsError: `folder` is a file, or holds something other than saved edits.
        OSError: it is the working directory, or its parent is not writable.

    Example:
        >>> import tempfile
        >>> check_destination(Path(tempfile.mkdtemp()) / "runs" / "edits").name
        'edits'
    """
    folder = Path(folder).expanduser().resolve()
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    strange = names - {CONFIG, *FILES, *FOLDERS} if CONFIG in names else names
    if strange or folder.is_file():
        raise FileExistsError(
            f"{folder} holds something other than saved edits ({some_of(strange or [folder.name])})"
            " and is not overwritten; move that away, or choose a new or empty folder"
        )
    if Path.cwd().is_relative_to(folder):  # it is replaced as a whole
        raise OSError(errno.EBUSY, f"{folder} is the working directory: name a folder in it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}."):
            pass
    except OSError as error:
        raise _not_saved(folder, error, error.errno) from error
    return folder


def _not_saved(folder: Path, error: Exception, code: int | None) -> OSError:
    problem = f"cannot save the edits to {folder}: {error}; nothing was changed there"
    return OSError(code or errno.EIO, f"{problem}; free space or use another folder")


def _write(model: MeGModel, folder: Path, save_base: bool) -> None:
    base = model.base
    if save_base:
        base.save_pretrained(folder / "base")
        _save_tokenizer(model.tokenizer, folder / "base")
    _save_tokenizer(model.tokenizer, folder / "tokenizer")
    model.encoder.save_pretrained(folder / "encoder")
    (folder / EDITS).write_text(format_edits(model.edits), "utf-8", newline="\n")
    for file, part in (
        (GATE, model.gate),
        (GENERATOR, model.generator),
        (INDEX, model.index),
    ):
        tensors = {name: value.cpu().contiguous() for name, value in part.state_dict().items()}
        save_file(tensors, folder / file)
    versions = {lib.__name__: lib.__version__ for lib in (torch, transformers)}
    config = {
        "format_version": FORMAT_VERSION,
        "versions": {"meg_editor": __version__, **versions},
        "hparams": {**model.hparams.to_dict(), "api_key": None},  # a secret is not saved
        "neuron": model.spec.to_dict(),
        "base": ModelReference.of(base, model.hparams.model_name).to_dict(),
        "edits": len(model.edits),
        "encoder_pooling": model.encoder.pooling,
        "files": manifest_of(folder),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False), "utf-8")


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save it with its current sides: transformers saves those it was constructed with."""
    tokenizer = copy.copy(tokenizer)
    sides = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side")}
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, **sides}
    tokenizer.save_pretrained(folder)


def _swap(new: Path, folder: Path) -> None:
    """Replace `folder` by `new`; restores it if that fails."""
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.rename(new.with_suffix(".old"))
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
