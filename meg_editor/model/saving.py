"""Edits on disk: one folder of JSON and safetensors, written whole or not at all.

meg_config.json         settings, the base model, and sha256 and size of every other file
edits.jsonl             one EditRequest per line
index.safetensors       anchors (N, E) as they are in memory: rounded ones could route differently
                        after a reload; states (N, D) of the LLM in float16
gate.safetensors, generator.safetensors
encoder/, tokenizer/    as transformers saves them; the tokenizer is the LM's
base/                   the LM and its tokenizer, with `save_base` only
"""

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators import GENERATORS
from meg_editor.lm.loading import resolve_device
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.reference import ModelReference, WrongModelError
from meg_editor.model.manifest import CONFIG, SavedModelError, manifest_of, reading, some_of, verify
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.schema import FORMAT_VERSION, format_edits, parse_config, parse_edits
from meg_editor.routing.encoder import TextEncoder, load_network
from meg_editor.routing.gates import GATES
from meg_editor.routing.index import QueryIndex

__all__ = ["SavedModelError", "check_destination", "from_pretrained", "save_pretrained"]

_EDITS, _INDEX = "edits.jsonl", "index.safetensors"
_GATE, _GENERATOR = "gate.safetensors", "generator.safetensors"
_FILES, _FOLDERS = (_EDITS, _INDEX, _GATE, _GENERATOR), ("encoder", "tokenizer", "base")
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def save_pretrained(model: MeGModel, folder: str | Path, *, save_base: bool = False) -> None:
    """Write the edits to `folder`, in the place of edits saved there before.

    `save_base` adds the base model itself; else the folder only says which one it was.

    Raises:
        ValueError: the gate or generator is not what the hyper-parameters describe.
        OSError: `check_destination` refuses, or writing failed; what was at `folder` before is
            still there, whole.
    """
    blanks = _blanks(model.hparams, model.encoder.dimension, model.spec.size, len(model.edits))
    for part, blank in zip((model.gate, model.generator), blanks, strict=True):
        wrong = _differences(part.state_dict(), blank.state_dict())
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
    """See that edits can be saved at `folder` before the work of fitting; gives its whole path.

    Parents which are missing are made.

    Raises:
        FileExistsError: `folder` is a file, or holds something other than saved edits.
        OSError: it is the working directory, or nothing can be written beside it.
    """
    folder = Path(folder).expanduser().resolve()
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    strange = names - {CONFIG, *_FILES, *_FOLDERS} if CONFIG in names else names
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


def from_pretrained(
    folder: str | Path, *, base: Any = None, tokenizer: Any = None, device: str | None = None
) -> MeGModel:
    """Read what `save_pretrained` wrote; it answers token for token as the saved model did.

    Args:
        base: the unedited model, or where it is now (hub id or local folder). Default: the one in
            the folder, if it was saved with it, else the one the edits were made for, by name.
        tokenizer: of the base model. Default: the one in the folder.
        device: for the base model. Default: where a given model is, else the GPU if there is one.
            A model which is spread over several GPUs must be loaded first and given.

    Raises:
        FileNotFoundError: there are no saved edits at `folder`.
        SavedModelError: damaged or foreign files, or another format version.
        WrongModelError: the given or loaded base model has other weights.
        OSError: the base model cannot be loaded.
    """
    folder = Path(folder).expanduser()
    if not (folder / CONFIG).is_file():
        found = f"it holds no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"no edits saved by save_pretrained at {folder}: {found}")
    with reading(folder / CONFIG):
        config = parse_config((folder / CONFIG).read_text("utf-8"))
        hparams = MeGHyperParams.from_dict(config["hparams"])
        spec = NeuronSpec.from_dict(config["neuron"])
    verify(folder, config["files"], _FILES, _FOLDERS, unread=() if base is None else ("base",))
    with reading(folder / _EDITS):
        edits = parse_edits((folder / _EDITS).read_text("utf-8"), config["edits"])
    with reading(folder / "encoder"):
        encoder = _encoder(folder / "encoder", config["encoder_pooling"])
    if tokenizer is None:
        with reading(folder / "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", **_LOCAL)
    gate, generator = _blanks(hparams, encoder.dimension, spec.size, len(edits))
    index = QueryIndex(
        torch.empty(len(edits), encoder.dimension),
        [edit.subject for edit in edits],
        torch.empty(len(edits), spec.hidden_size),
        name_weight=hparams.gate_name_weight,
        state_weight=hparams.gate_state_weight or 0.0,
    )
    for file, part in ((_GATE, gate), (_GENERATOR, generator), (_INDEX, index)):
        with reading(folder / file):
            tensors = load_file(folder / file)
            if wrong := _differences(tensors, part.state_dict()):
                raise ValueError(f"{wrong}, by the settings in {CONFIG}")
            part.load_state_dict(tensors)
            part.requires_grad_(False)
    reference = ModelReference(**config["base"])
    if not isinstance(base, nn.Module):
        copied = base is None and "base/config.json" in config["files"]
        base = reference.load(folder / "base" if copied else base, copied)
        device = device or "auto"
    if isinstance(base, MeGModel):
        raise WrongModelError("expected an unedited base model, got a MeGModel: pass its .base")
    reference.check(base)
    base = base if device is None else base.to(resolve_device(device))
    return MeGModel(base, tokenizer, hparams, spec, encoder, gate, generator, index, edits)


def _blanks(hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> tuple[Any, Any]:
    """The unfitted gate and generator of these hyper-parameters, for E, P and N."""
    gate = GATES[hparams.gate].build(hparams, dimension)
    return gate, GENERATORS[hparams.generator].build(hparams, dimension, size, edits)


def _write(model: MeGModel, folder: Path, save_base: bool) -> None:
    from meg_editor import __version__  # here, because the package imports its modules

    base = model.base
    if save_base:
        base.save_pretrained(folder / "base")
        _save_tokenizer(model.tokenizer, folder / "base")
    _save_tokenizer(model.tokenizer, folder / "tokenizer")
    model.encoder.save_pretrained(folder / "encoder")
    (folder / _EDITS).write_text(format_edits(model.edits), "utf-8", newline="\n")
    for file, part in (
        (_GATE, model.gate),
        (_GENERATOR, model.generator),
        (_INDEX, model.index),
    ):
        tensors = {name: value.cpu().contiguous() for name, value in part.state_dict().items()}
        save_file(tensors, folder / file)
    versions = {lib.__name__: lib.__version__ for lib in (torch, transformers)}
    config = {
        "format_version": FORMAT_VERSION,
        "versions": {"meg_editor": __version__, **versions},
        "hparams": {**model.hparams.to_dict(), "api_key": None},  # a secret is no setting
        "neuron": model.spec.to_dict(),
        "base": ModelReference.of(base, model.hparams.model_name).to_dict(),
        "edits": len(model.edits),
        "encoder_pooling": model.encoder.pooling,
        "files": manifest_of(folder),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False), "utf-8")


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """As it is now: by itself transformers writes only what it was constructed with."""
    tokenizer = copy.copy(tokenizer)
    sides = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side")}
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, **sides}
    tokenizer.save_pretrained(folder)


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, which is put back if that fails."""
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


def _encoder(folder: Path, pooling: Any) -> TextEncoder:
    # In the precision it had. TextEncoder.from_pretrained would also change the truncation side.
    options = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True}
    network, info = load_network(folder, **options, **_LOCAL)
    # A pooler is not read here: to lose it changes nothing.
    keys = {key for key in info["missing_keys"] | info["unexpected_keys"] if "pooler" not in key}
    if keys:
        raise ValueError(f"missing or unexpected tensors {some_of(keys)}")
    return TextEncoder(network, AutoTokenizer.from_pretrained(folder, **_LOCAL), pooling)


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """What tensors are missing, unexpected or of another shape or type; empty if none."""
    ours, theirs = (
        {name: f"{tuple(value.shape)} {value.dtype}" for name, value in tensors.items()}
        for tensors in (found, expected)
    )
    wrong = {
        "missing tensors": theirs.keys() - ours,
        "unexpected tensors": ours.keys() - theirs,
        "tensors of another shape or type": {
            f"{k} {ours[k]} (expected {theirs[k]})"
            for k in ours.keys() & theirs
            if ours[k] != theirs[k]
        },
    }
    return "; ".join(f"{what} {some_of(names)}" for what, names in wrong.items() if names)
