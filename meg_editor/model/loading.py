"""Load an edited model from its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.lm.loading import resolve_device
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import Tokenizer
from meg_editor.lm.reference import ModelReference, WrongModelError
from meg_editor.model.folder import (
    EDITS,
    FILES,
    FOLDERS,
    GATE,
    GENERATOR,
    INDEX,
    LOCAL,
    blanks,
    differences,
)
from meg_editor.model.manifest import CONFIG, reading, some_of, verify
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.schema import parse_config, parse_edits
from meg_editor.routing.encoder import TextEncoder, load_network
from meg_editor.routing.index import QueryIndex
from meg_editor.routing.pooling import check_pooling

_REPOSITORY = re.compile(r"[\w-]+/[\w.-]+")


def local_folder(name: str | Path, **options: Any) -> Path:
    """Local folder of `name`: the folder itself, or the downloaded snapshot of a hub repository.

    Args:
        options: of `huggingface_hub.snapshot_download`, such as `revision` and `token`.

    Raises:
        FileNotFoundError: neither a folder nor a repository that can be downloaded.
    """
    folder = Path(name).expanduser()
    if folder.exists() or not _REPOSITORY.fullmatch(str(name)):
        return folder
    try:
        return Path(snapshot_download(str(name), **options))
    except Exception as error:  # the hub's library has many kinds
        raise FileNotFoundError(
            f"no edits saved by save_pretrained at {folder}: there is no such folder, and no "
            f"repository of that name was reached ({type(error).__name__}: {error})"
        ) from error


def from_pretrained(
    folder: str | Path,
    *,
    base: Any = None,
    tokenizer: Tokenizer | None = None,
    device: str | None = None,
    runtime: RuntimeConfig | None = None,
) -> MeGModel:
    """Load a model saved by `save_pretrained`; it answers token for token as the saved one.

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
    folder = Path(folder).expanduser()
    if not (folder / CONFIG).is_file():
        reason = f"it holds no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"no edits saved by save_pretrained at {folder}: {reason}")
    with reading(folder / CONFIG):
        config = parse_config((folder / CONFIG).read_text("utf-8"))
        hparams = MeGHyperParams.from_dict(config["hparams"])
        spec = NeuronSpec.from_dict(config["neuron"])
        pooling = check_pooling(config["encoder_pooling"])
    verify(folder, config["files"], FILES, FOLDERS, unread=() if base is None else ("base",))
    with reading(folder / EDITS):
        edits = parse_edits((folder / EDITS).read_text("utf-8"), config["edits"])
    with reading(folder / "encoder"):
        encoder = _encoder(folder / "encoder", pooling)
    if tokenizer is None:
        with reading(folder / "tokenizer"):
            tokenizer = cast(
                Tokenizer, AutoTokenizer.from_pretrained(folder / "tokenizer", **LOCAL)
            )
    gate, generator = blanks(hparams, encoder.dimension, spec.size, len(edits))
    index = QueryIndex(
        torch.empty(len(edits), encoder.dimension),
        [edit.subject for edit in edits],
        torch.empty(len(edits), spec.hidden_size),
        name_weight=hparams.gate_name_weight,
        state_weight=hparams.gate_state_weight or 0.0,
    )
    for file, part in ((GATE, gate), (GENERATOR, generator), (INDEX, index)):
        with reading(folder / file):
            tensors = load_file(folder / file)
            if wrong := differences(tensors, part.state_dict()):
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
    return MeGModel(base, tokenizer, hparams, spec, encoder, gate, generator, index, edits, runtime)


def _encoder(folder: Path, pooling: str) -> TextEncoder:
    # In the saved dtype. TextEncoder.from_pretrained would also change the truncation side.
    options = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True}
    network, info = load_network(folder, **options, **LOCAL)
    # The pooler is not used.
    keys = {key for key in info["missing_keys"] | info["unexpected_keys"] if "pooler" not in key}
    if keys:
        raise ValueError(f"missing or unexpected tensors {some_of(keys)}")
    return TextEncoder(network, AutoTokenizer.from_pretrained(folder, **LOCAL), pooling)
