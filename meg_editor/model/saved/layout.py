"""Format of saved edits: one folder of JSON and safetensors, written atomically.

meg_config.json         settings, the base model, and sha256 and size of every other file
edits.jsonl             one edit per line, of the first of the editions in the history
index.safetensors       anchors (N, E) in the precision they have in memory (rounded ones could
                        route differently); hidden states (N, D) in float16
gate.safetensors, generator.safetensors
verifier.safetensors    what differs between verifier and encoder, where there is a verifier
history/                changes which were saved with it (`meg_editor.edits.log`)
changes/                changes since; the only part which is written to later
encoder/, tokenizer/    as transformers saves them; the tokenizer is the LM's
base/                   the LM and its tokenizer, with `save_base` only
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators import GENERATORS, WeightGenerator
from meg_editor.generators.grown import GrownGenerator
from meg_editor.model.saved.manifest import some_of
from meg_editor.routing.gates import GATES, Gate

EDITS, INDEX = "edits.jsonl", "index.safetensors"
GATE, GENERATOR = "gate.safetensors", "generator.safetensors"
VERIFIER, HISTORY = "verifier.safetensors", "history"
FILES, FOLDERS = (EDITS, INDEX, GATE, GENERATOR), ("encoder", "tokenizer", "base", "history")
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def blanks(
    hparams: MeGHyperParams, dimension: int, size: int, edits: int, stored: int | None = None
) -> tuple[Gate, WeightGenerator]:
    """Unfitted gate and generator for E = `dimension`, P = `size`, N = `edits`.

    Args:
        stored: S, of a trained generator beside S stored neurons.
    """
    gate = GATES[hparams.gate].build(hparams, dimension)
    generator = GENERATORS[hparams.generator].build(hparams, dimension, size, edits)
    if stored is None:
        return gate, generator
    slot = torch.zeros(edits, dtype=torch.long)
    return gate, GrownGenerator(generator, torch.zeros(stored, size), slot)


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Text of missing, unexpected and mismatched tensors (shape, dtype); empty if none."""
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
