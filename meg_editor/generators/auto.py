"""`generator: auto`: stored neurons, or a diffusion transformer once that is smaller."""

from __future__ import annotations

import torch

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators.dit import DiT

_HALF, _FLOAT = 2, 4  # bytes of a value


def bank_bytes(dimension: int, size: int, edits: int) -> int:
    """Bytes of a `NeuronBank`: N keys (E,) and neurons (P,) in half precision.

    Args:
        dimension: E, of a query embedding.
        size: P, of a neuron.
        edits: N.

    Example:
        >>> bank_bytes(dimension=768, size=8192, edits=10_000)
        179200000
    """
    return _HALF * edits * (dimension + size)


def dit_bytes(hparams: MeGHyperParams, dimension: int, size: int) -> int:
    """Bytes of the weights of a DiT, for any number of edits.

    Args:
        hparams: its width, depth and patch size.
        dimension: E, of a query embedding.
        size: P, of a neuron.
    """
    with torch.device("meta"):
        network = DiT(hparams, dimension, size)
    return _FLOAT * sum(parameter.numel() for parameter in network.parameters())


def smallest(hparams: MeGHyperParams, dimension: int, size: int, edits: int) -> str:
    """Name of the generator with fewer bytes: "bank" up to a number of edits, then "dit".

    Example:
        >>> hparams = MeGHyperParams.preset("default")
        >>> smallest(hparams, 768, 8192, edits=10), smallest(hparams, 768, 8192, edits=10**7)
        ('bank', 'dit')
    """
    stored = bank_bytes(dimension, size, edits)
    return "bank" if stored <= dit_bytes(hparams, dimension, size) else "dit"
