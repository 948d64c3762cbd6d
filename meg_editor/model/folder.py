"""Format of saved edits: one folder of JSON and safetensors, written atomically.

meg_config.json         settings, the base model, and sha256 and size of every other file
edits.jsonl             one EditRequest per line
index.safetensors       anchors (N, E) in the precision they have in memory (rounded ones could
                        route differently); hidden states (N, D) in float16
gate.safetensors, generator.safetensors
verifier.safetensors    what differs between verifier and encoder, where there is a verifier
encoder/, tokenizer/    as transformers saves them; the tokenizer is the LM's
base/                   the LM and its tokenizer, with `save_base` only
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators import GENERATORS, WeightGenerator
from meg_editor.model.manifest import some_of
from meg_editor.routing.gates import GATES, Gate

EDITS, INDEX = "edits.jsonl", "index.safetensors"
GATE, GENERATOR = "gate.safetensors", "generator.safetensors"
VERIFIER = "verifier.safetensors"
FILES, FOLDERS = (EDITS, INDEX, GATE, GENERATOR), ("encoder", "tokenizer", "base")
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def blanks(
    hparams: MeGHyperParams, dimension: int, size: int, edits: int
) -> tuple[Gate, WeightGenerator]:
    """Unfitted gate and generator for E = `dimension`, P = `size`, N = `edits`."""
    gate = GATES[hparams.gate].build(hparams, dimension)
    return gate, GENERATORS[hparams.generator].build(hparams, dimension, size, edits)


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
