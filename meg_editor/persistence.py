"""Edits on disk: one folder of JSON and safetensors, written whole or not at all.

meg_config.json         settings, the base model, sha256 and size of every other file
edits.jsonl             one EditRequest per line
anchors.safetensors     (N, E) float32: rounded ones could route differently after a reload
gate.safetensors, generator.safetensors
encoder/, tokenizer/    as transformers saves them; the tokenizer is the LM's
base/                   the LM and its tokenizer, with `save_base` only
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from meg_editor.encoder import TextEncoder
from meg_editor.gates import GATES
from meg_editor.generators import GENERATORS
from meg_editor.hparams import MeGHyperParams
from meg_editor.loading import resolve_device
from meg_editor.model import MeGModel
from meg_editor.neuron import NeuronSpec
from meg_editor.reference import ModelReference, WrongModelError
from meg_editor.requests import EditRequest

FORMAT_VERSION = 1
_CONFIG, _EDITS, _ANCHORS = "meg_config.json", "edits.jsonl", "anchors.safetensors"
_GATE, _GENERATOR = "gate.safetensors", "generator.safetensors"
_FILES, _FOLDERS = (_EDITS, _ANCHORS, _GATE, _GENERATOR), ("encoder", "tokenizer", "base")
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS: dict[str, Any] = {**_LOCAL, "use_safetensors": True}  # never pickle

# What JSON must hold: a type or types, one of a set, [of each item], {key: ...}; "*" is any key.
_OPTIONAL, _FLOATS = (str, type(None)), [(float, int)]
_EDIT = {"prompt": str, "target_new": str, "subject": _OPTIONAL}
_EDIT |= {"rephrases": [str], "locality_prompts": [str]}
_SPEC = {"layer": int, "read": str, "write": str, "hidden_size": int, "activation": str}
_BASE = {"name": str, "revision": _OPTIONAL, "fingerprint": {"*": _FLOATS}}
_SCHEMA = {
    "hparams": dict,
    "neuron": {**_SPEC, "bias": bool},
    "base": {**_BASE, "dtype": {"float32", "bfloat16", "float16", "float64"}},
    "edits": int,
    "encoder_pooling": {"cls", "mean"},
    "files": {"*": {"sha256": str, "size": int}},
}


class SavedModelError(ValueError):
    """A folder which does not hold intact saved edits, or edits of another base model."""


def save_pretrained(model: MeGModel, folder: str | Path, *, save_base: bool = False) -> None:
    """Write the edits to `folder`, in the place of edits saved there before.

    `save_base` adds the base model itself; else the folder only says which one it was.

    Raises:
        FileExistsError: `folder` is a file, or holds something other than saved edits.
        ValueError: the gate or generator is not what the hyper-parameters describe.
        OSError: writing failed; what was at `folder` before is still there, whole.
    """
    sizes = (model.encoder.dimension, model.spec.size, len(model.edits))
    blanks = _blanks(model.hparams, *sizes)
    for part, blank in zip((model.gate, model.generator), blanks, strict=True):
        wrong = _differences(part.state_dict(), blank.state_dict())
        if wrong or type(part) is not type(blank):
            raise ValueError(
                f"expected the {type(blank).__name__} which model.hparams describe, got a "
                f"{type(part).__name__}: {wrong}; set model.hparams to those it was built with"
            )
    folder = Path(folder).expanduser().resolve()
    if folder.exists():
        _check_replaceable(folder)
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
        problem = f"cannot save the edits to {folder}: {error}; nothing was changed there"
        raise OSError(code or errno.EIO, f"{problem}; free space or use another folder") from error
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)


def from_pretrained(
    folder: str | Path, *, base: Any = None, tokenizer: Any = None, device: str | None = None
) -> MeGModel:
    """Read what `save_pretrained` wrote; it answers token for token as the saved model did.

    Args:
        base: the unedited model, or where it is now (hub id or local folder). Default: the one in
            the folder, if it was saved with it, else the one the edits were made for, by name.
        tokenizer: of the base model. Default: the one in the folder.
        device: for the base model. Default: where a given model is, else the GPU if there is one.

    Raises:
        FileNotFoundError: there are no saved edits at `folder`.
        SavedModelError: damaged or foreign files, another format version, another base model.
        OSError: the base model cannot be loaded.
    """
    folder = Path(folder).expanduser()
    if not (folder / _CONFIG).is_file():
        found = f"it holds no {_CONFIG}" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"no edits saved by save_pretrained at {folder}: {found}")
    with _reading(folder / _CONFIG):
        config = json.loads((folder / _CONFIG).read_text("utf-8"))
        _check_json(config, {"format_version": int})
        if config["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"expected format_version {FORMAT_VERSION}, got {config['format_version']}: load "
                f"it with the meg_editor that wrote it ({config.get('versions')})"
            )
        _check_json(config, _SCHEMA)
        hparams = MeGHyperParams.from_dict(config["hparams"])
        spec = NeuronSpec.from_dict(config["neuron"])
    _verify(folder, config["files"], with_base=base is None)
    with _reading(folder / _EDITS):
        edits = _edits((folder / _EDITS).read_text("utf-8"), config["edits"])
    with _reading(folder / "encoder"):
        encoder = _encoder(folder / "encoder", config["encoder_pooling"])
    if tokenizer is None:
        with _reading(folder / "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", **_LOCAL)
    gate, generator = _blanks(hparams, encoder.dimension, spec.size, len(edits))
    holder = nn.Module()
    holder.register_buffer("anchors", torch.empty(len(edits), encoder.dimension))
    for file, part in ((_GATE, gate), (_GENERATOR, generator), (_ANCHORS, holder)):
        with _reading(folder / file):
            tensors = load_file(folder / file)
            if wrong := _differences(tensors, part.state_dict()):
                raise ValueError(f"{wrong}, by the settings in {_CONFIG}")
            part.load_state_dict(tensors)
            part.requires_grad_(False)
    anchors = holder.get_buffer("anchors")
    reference = ModelReference(**config["base"])
    if not isinstance(base, nn.Module):
        spread = hparams.model_parallel and device is None
        options = {"device_map": "auto"} if spread else {}
        if base is None and "base/config.json" in config["files"]:
            base = reference.load(folder / "base", **options, **_WEIGHTS)
            # It came from elsewhere, and that is where it will be sought if saved without base/.
            base.name_or_path = base.config.name_or_path = reference.name
            base.config._commit_hash = reference.revision
        else:
            base = reference.load(base, **options)
        device = device if spread else device or "auto"
    if isinstance(base, MeGModel):
        raise WrongModelError("expected an unedited base model, got a MeGModel: pass its .base")
    reference.check(base)
    base = base if device is None else base.to(resolve_device(device))
    return MeGModel(base, tokenizer, hparams, spec, encoder, gate, generator, anchors, edits)


def _blanks(hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> tuple[Any, Any]:
    """The unfitted gate and generator of these hyper-parameters, for E, P and N."""
    gate = GATES[hparams.gate].build(hparams, dimension)
    return gate, GENERATORS[hparams.generator].build(hparams, dimension, size, edits)


def _write(model: MeGModel, folder: Path, save_base: bool) -> None:
    from meg_editor import __version__  # here, because the package imports its modules

    base = model.base
    if save_base:
        base.save_pretrained(folder / "base")
        model.tokenizer.save_pretrained(folder / "base")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    model.encoder.save_pretrained(folder / "encoder")
    lines = [json.dumps(dataclasses.asdict(edit), ensure_ascii=False) for edit in model.edits]
    (folder / _EDITS).write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
    parts = {_GATE: model.gate.state_dict(), _GENERATOR: model.generator.state_dict()}
    for file, tensors in {**parts, _ANCHORS: {"anchors": model.anchors}}.items():
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, folder / file)
    versions = {lib.__name__: lib.__version__ for lib in (torch, transformers)}
    config = {
        "format_version": FORMAT_VERSION,
        "versions": {"meg_editor": __version__, **versions},
        "hparams": model.hparams.to_dict(),
        "neuron": model.spec.to_dict(),
        "base": ModelReference.of(base, model.hparams.model_name).to_dict(),
        "edits": len(model.edits),
        "encoder_pooling": model.encoder.pooling,
        "files": {name: _stamp(folder / name) for name in _names(folder)},
    }
    (folder / _CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False), "utf-8")


def _check_replaceable(folder: Path) -> None:
    """Raises FileExistsError unless the folder is empty, or holds saved edits and nothing else."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {folder.name}
    strange = names - {_CONFIG, *_FILES, *_FOLDERS}
    if strange or (names and _CONFIG not in names):
        raise FileExistsError(
            f"{folder} holds something other than saved edits ({_some(strange or names)}) and is "
            "not overwritten; move that away, or choose a new or empty folder"
        )


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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Names `path` in whatever goes wrong: libraries raise anything when a file is not theirs."""
    try:
        yield
    except Exception as error:
        raise SavedModelError(
            f"{path}: {error}; copy the folder again, or save it again"
        ) from error


def _check_json(value: Any, wanted: Any, where: str = "the file") -> None:
    """Compare with a description as in _SCHEMA. Raises ValueError naming `where`."""
    if isinstance(wanted, set):
        options, fits = wanted, isinstance(value, str) and value in wanted
    else:  # type() instead of isinstance(): a bool is no number here
        kind: Any = type(wanted) if isinstance(wanted, (dict, list)) else wanted
        kinds = kind if isinstance(kind, tuple) else (kind,)
        options, fits = {kind.__name__ for kind in kinds}, type(value) in kinds
    if not fits:
        found = f"{type(value).__name__} {value!r:.40}"
        raise ValueError(f"{where}: expected {' or '.join(sorted(options))}, got {found}")
    if isinstance(wanted, list):
        for index, item in enumerate(value):
            _check_json(item, wanted[0], f"{where}, item {index}")
    elif isinstance(wanted, dict):
        for key in value if "*" in wanted else wanted:
            if key not in value:
                raise ValueError(f"{where}: {key!r} is missing")
            _check_json(value[key], wanted.get("*", wanted.get(key)), f"{where}: {key}")


def _verify(folder: Path, files: dict[str, Any], with_base: bool) -> None:
    """Compare all files with the manifest. Raises SavedModelError naming the first bad one."""
    for name, told in files.items():
        # Links are allowed: the hub's cache holds folders of links to files elsewhere.
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or PureWindowsPath(name).drive:
            raise SavedModelError(f"{folder / _CONFIG}: the file {name!r} is not in the folder")
        if path.parts[:1] == ("base",) and not with_base:
            continue
        with _reading(folder / name):
            found = _stamp(folder / name)
            if found != told:
                raise ValueError(
                    f"cut short or changed: expected {told['size']} bytes with sha256 "
                    f"{told['sha256'][:12]}…, found {found['size']} with {found['sha256'][:12]}…"
                )
    # transformers would read files which have been put beside its own.
    strange = {name for name in _names(folder) if name.partition("/")[0] in _FOLDERS} - {*files}
    absent = {*_FILES} - {*files}
    if strange or absent:
        raise SavedModelError(
            f"{folder / _CONFIG}: it must list the files {_some(absent | strange)}; remove those "
            "which do not belong there, or copy or save the folder again"
        )


def _stamp(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "size": path.stat().st_size}


def _names(folder: Path) -> list[str]:
    """Relative names of all files but hidden ones, which no library reads."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _edits(text: str, count: int) -> list[EditRequest]:
    rows = [json.loads(line) for line in text.split("\n") if line]
    if len(rows) != count:
        raise ValueError(f"expected {count} edits, got {len(rows)}")
    _check_json(rows, [_EDIT])
    lists = ("rephrases", "locality_prompts")
    return [EditRequest(**{**row, **{key: tuple(row[key]) for key in lists}}) for row in rows]


def _encoder(folder: Path, pooling: Any) -> TextEncoder:
    # In the precision it had. TextEncoder.from_pretrained would also change the truncation side.
    network, keys = AutoModel.from_pretrained(
        folder, dtype="auto", output_loading_info=True, **_WEIGHTS
    )
    # A pooler is not read here: a new one, where the saved model had none, changes nothing.
    keys = {*keys["missing_keys"], *keys["unexpected_keys"]}
    if wrong := {key for key in keys if "pooler" not in key}:
        raise ValueError(f"missing or unexpected tensors {_some(wrong)}")
    return TextEncoder(network, AutoTokenizer.from_pretrained(folder, **_LOCAL), pooling)


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """What tensors are missing, unexpected or of another shape or type; empty if none."""
    kinds = {k: (tuple(v.shape), str(v.dtype)) for k, v in expected.items()}
    wrong = {
        "missing tensors": expected.keys() - found.keys(),
        "unexpected tensors": found.keys() - expected.keys(),
        "tensors of another shape or type": {
            f"{k} {tuple(v.shape)} {v.dtype} (expected {kinds[k][0]} {kinds[k][1]})"
            for k, v in found.items()
            if k in kinds and (tuple(v.shape), str(v.dtype)) != kinds[k]
        },
    }
    return "; ".join(f"{what} {_some(names)}" for what, names in wrong.items() if names)


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:5]) + (f" and {len(first) - 5} more" if len(first) > 5 else "")
