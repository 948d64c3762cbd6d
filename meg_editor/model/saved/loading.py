"""Load an edited model from its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.edits.change import History
from meg_editor.edits.edit import Edit
from meg_editor.edits.edition import Edition
from meg_editor.edits.log import End
from meg_editor.edits.replay import replay
from meg_editor.lm.loading import resolve_device
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.one_load import one_load
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.reference import ModelReference, WrongModelError
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.appending import Saved, Settings
from meg_editor.model.saved.changes import CHANGES, read_changes
from meg_editor.model.saved.checks import check_finite, check_neuron, check_sizes
from meg_editor.model.saved.layout import (
    EDITS,
    FILES,
    FOLDERS,
    GATE,
    GENERATOR,
    INDEX,
    LOCAL,
    VERIFIER,
    blanks,
    differences,
)
from meg_editor.model.saved.manifest import (
    CHECKSUM,
    CONFIG,
    reading,
    some_of,
    verify,
)
from meg_editor.model.saved.schema import parse_edits
from meg_editor.model.saved.versions import read_version
from meg_editor.routing.encoder import TextEncoder, load_network
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.pooling import check_pooling
from meg_editor.routing.verifier import Verifier
from meg_editor.runtime.files import resolved
from meg_editor.runtime.hub import hub_problem
from meg_editor.runtime.torch_defaults import torch_defaults

_REPOSITORY = re.compile(r"[\w-]+/[\w.-]+")


def local_folder(name: str | Path, **options: Any) -> Path:
    """Local folder of `name`: the folder itself, or the downloaded snapshot of a hub repository.

    Args:
        options: of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

    Raises:
        FileNotFoundError: neither a folder nor a repository that can be downloaded.
    """
    folder = resolved(name)
    if folder.exists() or not _REPOSITORY.fullmatch(str(name)):
        return folder
    if problem := hub_problem():  # the hub's library would try for half a minute
        options["local_files_only"] = True
    try:
        return Path(snapshot_download(str(name), **options))
    except Exception as error:  # the hub's library has many kinds
        raise FileNotFoundError(
            f"no edits saved by save_pretrained at {folder}: there is no such folder, and no "
            f"repository of that name was reached ({problem or f'{type(error).__name__}: {error}'})"
        ) from error


@one_load()
@torch_defaults()
def from_pretrained(
    folder: str | Path,
    *,
    base: Any = None,
    tokenizer: Tokenizer | None = None,
    device: str | None = None,
    runtime: RuntimeConfig | None = None,
) -> MeGModel:
    """Load a model saved by `save_pretrained`; it answers token for token as the saved one.

    What is loaded is one version of the folder, whole, also while another process saves to it.
    Threads load one after another.

    Args:
        base: the unedited model, or its hub id or local folder. Default: the copy in the folder if
            there is one (`save_base`), else the model the edits were fitted on, by name.
        tokenizer: of the base model. Default: the one in the folder.
        device: for the base model. Default: that of a given model, else the GPU if there is one.
            A model which is spread over several GPUs must be loaded first and given.
        runtime: memory, batch and cache sizes.

    Raises:
        FileNotFoundError: there are no saved edits at `folder`.
        SavedModelError: damaged or foreign files, or another format version.
        WrongModelError: the given or loaded base model has other weights.
        OSError: the base model cannot be loaded.
    """
    device = None if device is None else resolve_device(device)
    folder = resolved(folder)
    if not (folder / CONFIG).is_file():
        reason = f"it holds no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"no edits saved by save_pretrained at {folder}: {reason}")
    parts = read_version(folder, partial(_read, home=folder, own_base=base is None))
    if not isinstance(base, nn.Module):
        base = parts.base if parts.base is not None else parts.reference.load(base)
        device = device or resolve_device("auto")
    if isinstance(base, MeGModel):
        raise WrongModelError("expected an unedited base model, got a MeGModel: pass its .base")
    parts.reference.check(base)
    check_neuron(parts.spec, parts.hparams, base)
    base = base if device is None else base.to(device)
    model = MeGModel(
        base,
        parts.tokenizer if tokenizer is None else tokenizer,
        parts.hparams,
        parts.spec,
        parts.encoder,
        parts.edition,
        runtime,
        parts.verifier,
    )
    model._history, model._saved = parts.history, {parts.saved.folder: parts.saved}
    return model.eval()


@dataclass(frozen=True)
class _Parts:
    """What a folder holds; `base` is its copy of the base model, if that was to be read."""

    hparams: MeGHyperParams
    spec: NeuronSpec
    edition: Edition
    history: History
    saved: Saved
    encoder: TextEncoder
    tokenizer: Tokenizer
    verifier: Verifier | None
    reference: ModelReference
    base: CausalLM | None


def _read(folder: Path, config: dict[str, Any], *, home: Path, own_base: bool) -> _Parts:
    """The parts of a folder which nobody writes to; with `own_base` its copy of the base model.

    Args:
        home: where the changes are, if `folder` is a view of a version.
    """
    verify(folder, config["files"], FILES, FOLDERS, unread=() if own_base else ("base",))
    with reading(folder / CONFIG):
        hparams = MeGHyperParams.from_dict(config["hparams"])
        spec = NeuronSpec.from_dict(config["neuron"])
        pooling = check_pooling(config["encoder_pooling"])
        reference = ModelReference(**config["base"])
    with reading(folder / EDITS):
        edits = parse_edits((folder / EDITS).read_text("utf-8"), config["edits"])
    with reading(folder / "encoder"):
        check_sizes(folder / "encoder")
        encoder = _encoder(folder / "encoder", pooling)
        check_finite(encoder.state_dict())
    with reading(folder / "tokenizer"):
        tokenizer = cast(Tokenizer, AutoTokenizer.from_pretrained(folder / "tokenizer", **LOCAL))
    sizes = (hparams, spec, edits, encoder.dimension, config.get("stored_beside"))
    with reading(folder / CONFIG), torch.device("meta"):
        expected = _blank_parts(*sizes)
    stored = {}
    for file, blank in expected.items():
        with reading(folder / file):
            stored[file] = load_file(folder / file)
            if wrong := differences(stored[file], blank.state_dict()):
                raise ValueError(f"{wrong}, by the settings in {CONFIG}")
            check_finite(stored[file])
    parts: dict[str, Any] = _blank_parts(*sizes)
    for file, part in parts.items():
        part.load_state_dict(stored[file])
        part.requires_grad_(False)
    verifier = None
    if VERIFIER in config["files"]:
        with reading(folder / VERIFIER):
            adapter = load_file(folder / VERIFIER)
            check_finite(adapter)
            verifier = Verifier(encoder, adapter)
    base = None
    if own_base and "base/config.json" in config["files"]:
        base = reference.load(folder / "base", copied=True)
    origin = Edition(edits, parts[GATE], parts[INDEX], parts[GENERATOR])
    checksum = str(config[CHECKSUM])
    with reading(home / CHANGES):
        earlier, later = read_changes(home, folder, checksum)
        edition, history = replay(origin, earlier + later)
    saved = Saved(
        home,
        checksum,
        history,
        len(history.changes),
        End.of(later, checksum),
        Settings.of(hparams, edition.gate, verifier),
        "base/config.json" in config["files"],
    )
    return _Parts(
        hparams=hparams,
        spec=spec,
        edition=edition,
        history=history,
        saved=saved,
        encoder=encoder,
        tokenizer=tokenizer,
        verifier=verifier,
        reference=reference,
        base=base,
    )


def _blank_parts(
    hparams: MeGHyperParams,
    spec: NeuronSpec,
    edits: Sequence[Edit],
    dimension: int,
    stored: int | None,
) -> dict[str, nn.Module]:
    """Gate, generator and index without content, by file."""
    gate, generator = blanks(hparams, dimension, spec.size, len(edits), stored)
    index = QueryIndex(
        torch.empty(len(edits), dimension),
        [edit.subject for edit in edits],
        torch.empty(len(edits), spec.hidden_size),
        name_weight=hparams.gate_name_weight,
        state_weight=hparams.gate_state_weight or 0.0,
    )
    return {GATE: gate, GENERATOR: generator, INDEX: index}


def _encoder(folder: Path, pooling: str) -> TextEncoder:
    # In the saved dtype. TextEncoder.from_pretrained would also change the truncation side.
    options = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True}
    network, info = load_network(folder, **options, **LOCAL)
    # The pooler is not used.
    keys = {key for key in info["missing_keys"] | info["unexpected_keys"] if "pooler" not in key}
    if keys:
        raise ValueError(f"missing or unexpected tensors {some_of(keys)}")
    return TextEncoder(network, AutoTokenizer.from_pretrained(folder, **LOCAL), pooling)
