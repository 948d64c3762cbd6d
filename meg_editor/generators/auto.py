"""Stored neurons or a diffusion transformer: which takes less room?"""

from __future__ import annotations

import torch

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.dit import DiT

_HALF, _FLOAT = 2, 4  # bytes of a value


def bank_bytes(dimension: int, size: int, edits: int) -> int:
    """Bytes of a `NeuronBank`: N keys (E,) and neurons (P,) in half precision.

    Example:
        >>> bank_bytes(dimension=768, size=8192, edits=10_000)
        179200000
    """
    return _HALF * edits * (dimension + size)


def dit_bytes(hparams: MeGHyperParams, dimension: int, size: int) -> int:
    """Bytes of the weights of the DiT these settings describe, whatever the number of edits."""
    with torch.device("meta"):
        network = DiT(hparams, dimension, size)
    return _FLOAT * sum(parameter.numel() for parameter in network.parameters())


def smallest(hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> str:
    """ "bank" while stored neurons take no more room than a DiT, else "dit"."""
    stored = bank_bytes(dimension, size, edits)
    return "bank" if stored <= dit_bytes(hparams, dimension, size) else "dit"
